"""A service that comes back: runs that went on are followed, all others wait for another start."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.v1 import training_pb2
from services.trainer.backends.backend import RunWait
from services.trainer.job import TrainingJob
from tests.trainer.service.harness import (
    ALICE,
    Stub,
    ToldBackend,
    ToldRun,
    create_request,
    serving,
    settings,
    upload,
)

State = training_pb2.TrainingJob


class _Outliving(ToldBackend):
    """Its runs go on without the service."""

    outlives_service = True

    def __init__(self) -> None:
        super().__init__()
        self.going: dict[str, ToldRun] = {}

    async def start(self, job: TrainingJob, configuration: Path) -> ToldRun:
        run = self.going[job.id] = await super().start(job, configuration)
        return run

    async def attach(self, job: TrainingJob) -> ToldRun | None:
        return self.going.get(job.id)


async def _create(stub: Stub, photos: Path) -> str:
    request = create_request(await upload(stub, photos))
    return (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id


async def _last(stub: Stub, job_id: str) -> State:
    request = training_pb2.WatchTrainingJobRequest(id=job_id)
    return [message.job async for message in stub.WatchTrainingJob(request, metadata=ALICE)][-1]


async def test_a_run_that_outlives_the_service_is_not_stopped_and_not_started_again(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    configured, backend = settings(plain_model, tmp_path), _Outliving()
    async with serving(configured, backend) as stub:
        job_id = await _create(stub, photos)
        run = await backend.runs.get()
    assert not run.end.done()
    async with serving(configured, backend) as stub:
        run.finish(0)
        assert (await _last(stub, job_id)).state == State.STATE_SUCCEEDED
    assert backend.runs.empty()


async def test_runs_that_are_stopped_again_and_again_are_started_once_each_time(
    plain_model: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path, max_running_jobs=4), backend) as stub:
        first = create_request(await upload(stub, photos))
        again = [create_request(first.dataset_id, idempotency_key=str(key)) for key in range(2)]
        job_ids = [
            (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
            for request in (first, *again)
        ]
        for exit_code in (*[143] * 20, 0):
            for run in [await backend.runs.get() for _ in job_ids]:
                run.finish(exit_code)
        for job_id in job_ids:
            assert (await _last(stub, job_id)).state == State.STATE_SUCCEEDED
        assert backend.runs.empty()
    assert "Exception in callback" not in caplog.text


@pytest.mark.parametrize("cancel", [False, True])
async def test_a_run_that_is_gone_is_started_again_unless_its_owner_wanted_it_to_stop(
    plain_model: Path, photos: Path, tmp_path: Path, cancel: bool
) -> None:
    configured, backend = settings(plain_model, tmp_path), _Outliving()
    async with serving(configured, backend) as stub:
        job_id = await _create(stub, photos)
        run = await backend.runs.get()
        if cancel:
            run.deaf = True
            request = training_pb2.CancelTrainingJobRequest(id=job_id)
            await stub.CancelTrainingJob(request, metadata=ALICE)
    backend.going.clear()
    async with serving(configured, backend) as stub:
        if not cancel:
            (await backend.runs.get()).finish(0)
        expected = State.STATE_CANCELLED if cancel else State.STATE_SUCCEEDED
        assert (await _last(stub, job_id)).state == expected
    assert backend.runs.empty()


async def test_a_run_that_waits_is_shown_as_queued_with_the_reason(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path), backend) as stub:
        job_id = await _create(stub, photos)
        run = await backend.runs.get()
        run.waiting = RunWait(reason="UNSCHEDULABLE", message="no machine is free")
        request = training_pb2.WatchTrainingJobRequest(id=job_id)
        async for message in stub.WatchTrainingJob(request, metadata=ALICE):
            job = message.job
            if job.waiting_message:
                assert job.state == State.STATE_QUEUED
                assert job.waiting_reason == training_pb2.TRAINING_FAILURE_REASON_UNSCHEDULABLE
                run.waiting = None
                run.say(step=1)
            elif job.step == 1 and job.state == State.STATE_RUNNING:
                run.finish(0)
        assert job.state == State.STATE_SUCCEEDED
