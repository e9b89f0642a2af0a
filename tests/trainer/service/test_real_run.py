"""The service with real runs as processes."""

import json
from pathlib import Path

import pytest

from limner.v1 import training_pb2
from services.diffusion.families.loading import load_model
from services.diffusion.model import ModelSpec
from services.diffusion.trained import TrainedModels
from services.storage.catalog import FolderCatalog
from services.trainer.backends.subprocess_backend import LOG_FILE
from tests.trainer.service.harness import ALICE, Stub, create_request, serving, settings, upload

pytestmark = pytest.mark.timeout(600)

State = training_pb2.TrainingJob
_CONFIGURATION = """
optimization: {step_count: 60, learning_rate: 1.0e-3}
pictures: {side: 64}
prior: {image_count: 2, step_count: 2, guidance_scale: 1.0}
validation: {interval: 0, step_count: 2}
"""


async def _await(stub: Stub, job_id: str, *, state: int, step: int = 0) -> State:
    request = training_pb2.WatchTrainingJobRequest(id=job_id)
    async for message in stub.WatchTrainingJob(request, metadata=ALICE):
        if message.job.state == state and message.job.step >= step:
            return message.job
    raise AssertionError(f"ended otherwise: {message.job}")


async def test_a_model_trained_in_full_draws_for_its_owner(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    configured = settings(plain_model, tmp_path)
    request = {
        "method": training_pb2.TRAINING_METHOD_FULL,
        "configuration_yaml": _CONFIGURATION.replace("step_count: 60", "step_count: 4"),
    }
    async with serving(configured) as stub:
        dataset = await upload(stub, photos)
        created = create_request(dataset, **request)
        job = (await stub.CreateTrainingJob(created, metadata=ALICE)).job
        await _await(stub, job.id, state=State.STATE_SUCCEEDED, step=4)
    (entry,) = FolderCatalog(configured.catalog_folder()).entries("alice")
    assert (entry.method, entry.name) == ("full", f"tiny@{job.id}")
    base = ModelSpec(name="tiny", path_or_hub_id=str(plain_model), runtime="torch")
    models = TrainedModels(
        FolderCatalog(configured.catalog_folder()),
        {"tiny": base},
        load=load_model,
        capacity=1,
        runtime="torch",
    )
    async with models.use(entry.name, "alice", []) as (model, _):
        assert model.revision != load_model(base).revision


async def test_a_run_that_the_service_stopped_goes_on_when_it_is_back(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    configured = settings(plain_model, tmp_path)
    async with serving(configured) as stub:
        dataset = await upload(stub, photos)
        request = create_request(dataset, configuration_yaml=_CONFIGURATION)
        job = (await stub.CreateTrainingJob(request, metadata=ALICE)).job
        await _await(stub, job.id, state=State.STATE_RUNNING, step=1)
    async with serving(configured) as stub:
        ended = await _await(stub, job.id, state=State.STATE_SUCCEEDED)
    folder = tmp_path / "jobs" / job.id
    print((folder / LOG_FILE).read_text())
    assert ended.step == ended.step_count == 60
    assert ended.progress.class_picture_count == 2
    lines = (folder / "output" / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 61))
    assert (folder / "output" / "result" / "model" / "model_index.json").is_file()
