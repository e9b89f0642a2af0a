"""Training through the real gateway, trainer and diffusion server, on the embedded model."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.client import Client, LimnerError, ModelNotFound, NotFound, TrainingJob
from services.client.training_jobs import TrainingSample
from services.local.ports import free_port
from services.local.settings import SuiteSettings, plan_suite
from tests.e2e.running_suite import RunningService, wait_for

STEP_COUNT = 12
STEP_MILLICREDITS = 20
CONFIGURATION = f"""
optimization: {{step_count: {STEP_COUNT}, learning_rate: 1.0e-3}}
lora: {{rank: 4}}
pictures: {{side: 64}}
prior: {{image_count: 2, step_count: 2, guidance_scale: 1.0}}
validation: {{interval: 4, step_count: 2, guidance_scale: 1.0}}
checkpoint_interval: 1
"""
PROMPTS = {"instance_prompt": "a photo of sks toy", "class_prompt": "a photo of a toy"}


class TrainingSuite:
    """Gateway, diffusion server and trainer, with keys of two accounts."""

    def __init__(self, settings: SuiteSettings, pepper: str, environment: dict[str, str]) -> None:
        logs = settings.data.logs
        # A full queue of threads on a busy machine makes a small model slower, not faster.
        environment = environment | {"OMP_NUM_THREADS": "1"}
        self.address = settings.address
        self.key = settings.data.read_key()
        self.model = settings.models.partition("=")[0]
        self.diffusion = RunningService(settings.diffusion(), logs / "diffusion.log", environment)
        self.trainer = RunningService(settings.trainer(), logs / "trainer.log", environment)
        self.gateway = RunningService(
            settings.gateway(pepper, upscales=False),
            logs / "gateway.log",
            environment | {"LIMNER_GATEWAY_TRAINING_SETTLE_INTERVAL_S": "0.5"},
        )

    @property
    def services(self) -> tuple[RunningService, ...]:
        return self.gateway, self.trainer, self.diffusion

    def wait_until_ready(self) -> None:
        for service in (self.diffusion, self.trainer, self.gateway):
            service.wait_until_ready()

    def client(self, key: str | None = None) -> Client:
        return Client(self.address, api_key=key or self.key)


@pytest.fixture(scope="module")
def suite(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], models: str
) -> Iterator[TrainingSuite]:
    import asyncio

    settings = replace(
        plan_suite(tmp_path_factory.mktemp("data"), port=None, models=models),
        gateway_metrics_port=free_port(),
        diffusion_metrics_port=free_port(),
        trainer_metrics_port=free_port(),
    )
    suite = TrainingSuite(settings, asyncio.run(settings.data.prepare()), environment)
    try:
        suite.wait_until_ready()
        yield suite
        assert [service.end(signal.SIGTERM) for service in suite.services] == [0, 0, 0]
    finally:
        for service in suite.services:
            if service.process.poll() is None:
                service.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def stranger(suite: TrainingSuite) -> str:
    """The key of another account."""
    with suite.client() as client:
        client.admin.create_account("stranger", tier="unlimited")
        return client.admin.create_key("stranger", name="test").text


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(4)]
    for path in paths:
        pixels = np.kron(numbers.integers(0, 255, (8, 8, 3), dtype=np.uint8), np.ones((16, 16, 1)))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return paths


def _charged(client: Client) -> int:
    return client.usage().charged_millicredits


def _train(client: Client, suite: TrainingSuite, photos: list[Path], name: str) -> TrainingJob:
    dataset = client.trainings.upload(photos)
    assert dataset.picture_count == len(photos)
    return client.trainings.create(
        dataset.id,
        base_model=suite.model,
        configuration_yaml=CONFIGURATION,
        model_name=name,
        **PROMPTS,
    )


def _revision(client: Client, model: str) -> str:
    return next(each.revision for each in client.models() if each.name == model)


def test_upload_train_watch_draw_and_delete(
    suite: TrainingSuite, photos: list[Path], stranger: str
) -> None:
    with suite.client() as client, suite.client(stranger) as other:
        charged = _charged(client)
        job = _train(client, suite, photos, "toy")
        assert (job.model, job.step_count) == (f"{suite.model}@toy", STEP_COUNT)
        events = list(client.trainings.watch(job.id, with_samples=True))
        states = [event for event in events if isinstance(event, TrainingJob)]
        samples = [event for event in events if isinstance(event, TrainingSample)]
        assert states[-1].state == "succeeded", states[-1]
        assert states[-1].step == STEP_COUNT
        assert {sample.step for sample in samples} <= {4, 8, 12}
        assert samples[-1].step == STEP_COUNT
        assert _charged(client) - charged == STEP_COUNT * STEP_MILLICREDITS

        image = client.generate("a photo of sks toy", model=job.model, seed=7, step_count=4).image
        plain = client.generate("a photo of sks toy", seed=7, step_count=4).image
        assert image.data != plain.data
        assert [each.name for each in client.models()][-1] == job.model

        assert job.model not in [each.name for each in other.models()]
        with pytest.raises(ModelNotFound) as refused:
            other.generate("a photo of sks toy", model=job.model)
        assert job.model not in str(refused.value).partition("there is")[2]
        with pytest.raises(NotFound):
            other.trainings.get(job.id)
        assert not list(other.trainings.list())

        client.trainings.delete(job.id)
        with pytest.raises(ModelNotFound):
            client.generate("a photo of sks toy", model=job.model)
        assert job.model not in [each.name for each in client.models()]
        assert not list(client.trainings.list())


def test_killing_the_trainer_loses_nothing(suite: TrainingSuite, photos: list[Path]) -> None:
    with suite.client() as client:
        charged = _charged(client)
        undisturbed = _train(client, suite, photos, "calm")
        assert _last(client, undisturbed.id).state == "succeeded"
        disturbed = _train(client, suite, photos, "rough")
        wait_for(lambda: client.trainings.get(disturbed.id).step >= 3, "some steps", 240)
        suite.trainer.end(signal.SIGKILL)
        suite.trainer.start()
        suite.trainer.wait_until_ready()
        wait_for(lambda: _state(client, disturbed.id) == "succeeded", "the end", 300)
        assert client.trainings.get(disturbed.id).attempt == 1
        assert _revision(client, undisturbed.model) == _revision(client, disturbed.model)
        assert _charged(client) - charged == 2 * STEP_COUNT * STEP_MILLICREDITS


def test_cancelling_gives_the_rest_back(suite: TrainingSuite, photos: list[Path]) -> None:
    with suite.client() as client:
        charged = _charged(client)
        job = _train(client, suite, photos, "")
        wait_for(lambda: client.trainings.get(job.id).step >= 1, "a step", 240)
        client.trainings.cancel(job.id)
        ended = _last(client, job.id)
        assert ended.state == "cancelled"
        assert _charged(client) - charged == ended.step * STEP_MILLICREDITS
        client.trainings.resume(job.id)
        assert _last(client, job.id).state == "succeeded"
        assert _charged(client) - charged == STEP_COUNT * STEP_MILLICREDITS


def _last(client: Client, job_id: str) -> TrainingJob:
    last = [event for event in client.trainings.watch(job_id) if isinstance(event, TrainingJob)][-1]
    return last


def _state(client: Client, job_id: str) -> str:
    try:
        return client.trainings.get(job_id).state
    except LimnerError:
        return "the trainer is starting"
