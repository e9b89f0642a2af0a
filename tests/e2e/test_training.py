"""Training through the real gateway, trainer and diffusion server, on the embedded model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from services.client import Client, LimnerError, ModelNotFound, NotFound, TrainingJob
from services.local.ports import free_port
from services.local.settings import SuiteSettings, plan_suite
from tests.e2e.running_suite import LIMNER, RunningService, wait_for

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
_WITHOUT_ADAPTERS = CONFIGURATION.replace("lora: {rank: 4}\n", "")


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
            settings.gateway(pepper, upscales=False, trains=True),
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


@pytest.fixture(scope="module")
def toy(
    suite: TrainingSuite, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> TrainingJob:
    """A job that `limner train` has trained and watched to its end."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "settings.yaml").write_text(CONFIGURATION)
    arguments = ["--class", "toy", "--name", "toy", "--samples", "samples", "--json"]
    ended = subprocess.run(
        [*LIMNER, "train", str(photos[0].parent), *arguments, "--config", "settings.yaml"],
        cwd=folder,
        env={**os.environ, "LIMNER_ADDRESS": suite.address, "LIMNER_API_KEY": suite.key},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.returncode == 0, ended.stderr
    assert f"succeeded: {STEP_COUNT} of {STEP_COUNT} steps" in ended.stderr
    kept = sorted(path.name for path in (folder / "samples").iterdir())
    assert kept[-1] == f"step-{STEP_COUNT:06d}-0.png"
    assert set(kept) <= {f"step-{step:06d}-0.png" for step in (4, 8, 12)}
    with suite.client() as client:
        return client.trainings.get(json.loads(ended.stdout)["id"])


def test_a_trained_model_draws_for_its_owner_alone(
    suite: TrainingSuite, toy: TrainingJob, stranger: str
) -> None:
    assert (toy.state, toy.model) == ("succeeded", f"{suite.model}@toy")
    with suite.client() as client, suite.client(stranger) as other:
        assert client.usage().charged_millicredits == STEP_COUNT * STEP_MILLICREDITS
        trained = client.generate("a photo of sks toy", model=toy.model, seed=7, step_count=4)
        plain = client.generate("a photo of sks toy", seed=7, step_count=4)
        assert trained.image.data != plain.image.data
        assert trained.accepted.model == toy.model
        listed = client.models()[-1]
        assert (listed.name, listed.base_model) == (toy.model, suite.model)

        assert toy.model not in [each.name for each in other.models()]
        with pytest.raises(ModelNotFound) as refused:
            other.generate("a photo of sks toy", model=toy.model)
        assert toy.model not in str(refused.value).partition("there is")[2]
        with pytest.raises(NotFound):
            other.trainings.get(toy.id)
        assert not list(other.trainings.list())


def test_killing_the_trainer_loses_nothing(
    suite: TrainingSuite, toy: TrainingJob, photos: list[Path]
) -> None:
    with suite.client() as client:
        charged = client.usage().charged_millicredits
        job = _train(client, suite, photos, "rough")
        wait_for(lambda: client.trainings.get(job.id).step >= 3, "some steps", 240)
        suite.trainer.end(signal.SIGKILL)
        suite.trainer.start()
        suite.trainer.wait_until_ready()
        wait_for(lambda: _state(client, job.id) == "succeeded", "the end", 300)
        assert client.trainings.get(job.id).attempt == 1
        # The same weights, file by file, as of the run that nobody disturbed.
        assert _revision(client, job.model) == _revision(client, toy.model)
        paid = client.usage().charged_millicredits - charged
        assert paid == STEP_COUNT * STEP_MILLICREDITS

        client.trainings.delete(job.id)
        with pytest.raises(ModelNotFound):
            client.generate("a photo of sks toy", model=job.model)
        assert job.model not in [each.name for each in client.models()]
        assert job.id not in [each.id for each in client.trainings.list()]


@pytest.mark.soak
def test_cancelling_a_full_training_gives_the_rest_back_and_a_resume_pays_it(
    suite: TrainingSuite, photos: list[Path]
) -> None:
    with suite.client() as client:
        charged = client.usage().charged_millicredits
        job = _train(client, suite, photos, "", method="full")
        wait_for(lambda: client.trainings.get(job.id).step >= 1, "a step", 240)
        client.trainings.cancel(job.id)
        ended = _last(client, job.id)
        assert ended.state == "cancelled"
        assert client.usage().charged_millicredits - charged == ended.step * STEP_MILLICREDITS
        client.trainings.resume(job.id)
        assert _last(client, job.id).state == "succeeded"
        paid = client.usage().charged_millicredits - charged
        assert paid == STEP_COUNT * STEP_MILLICREDITS
        trained = client.generate("a photo of sks toy", model=job.model, seed=7, step_count=4)
        plain = client.generate("a photo of sks toy", seed=7, step_count=4)
        assert trained.image.data != plain.image.data


def _train(
    client: Client,
    suite: TrainingSuite,
    photos: list[Path],
    name: str,
    *,
    method: Literal["lora", "full"] = "lora",
) -> TrainingJob:
    dataset = client.trainings.upload(photos)
    assert dataset.picture_count == len(photos)
    return client.trainings.create(
        dataset.id,
        base_model=suite.model,
        instance_prompt="a photo of sks toy",
        class_prompt="a photo of a toy",
        configuration_yaml=CONFIGURATION if method == "lora" else _WITHOUT_ADAPTERS,
        method=method,
        model_name=name,
    )


def _revision(client: Client, model: str) -> str:
    return next(each.revision for each in client.models() if each.name == model)


def _last(client: Client, job_id: str) -> TrainingJob:
    return [each for each in client.trainings.watch(job_id) if isinstance(each, TrainingJob)][-1]


def _state(client: Client, job_id: str) -> str:
    try:
        return client.trainings.get(job_id).state
    except LimnerError:
        return "the trainer is starting"
