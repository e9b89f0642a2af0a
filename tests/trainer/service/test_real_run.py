"""The service with real runs as processes."""

import json
from pathlib import Path

import pytest

from limner.v1 import training_pb2
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
