"""The database of jobs away, the disk full: runs go on, clients hear it, nothing is lost."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from limner.v1 import training_pb2, training_pb2_grpc
from services.trainer.datasets import Upload
from services.trainer.job import TrainingJob
from services.trainer.run.violations import EXIT_DISK_FULL
from services.trainer.server import open_trainer_server
from services.trainer.store import JobStore
from tests.gateway.waiting import until
from tests.trainer.service.harness import (
    ALICE,
    Stub,
    ToldBackend,
    create_request,
    serving,
    settings,
    upload,
)

State = training_pb2.TrainingJob


@contextmanager
def _database_away() -> Iterator[None]:
    def refuse(_connection: Any, _cursor: Any, statement: str, *_: Any) -> NoReturn:
        raise OperationalError(statement, None, sqlite3.OperationalError("disk is full"))

    event.listen(Engine, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", refuse)


async def _last(stub: Stub, job_id: str) -> State:
    request = training_pb2.WatchTrainingJobRequest(id=job_id)
    return [message.job async for message in stub.WatchTrainingJob(request, metadata=ALICE)][-1]


async def _logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    await until(lambda: text in caplog.text)


async def test_a_run_that_ends_while_the_database_is_away_ends_its_job_later(
    plain_model: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path), backend) as stub:
        first = create_request(await upload(stub, photos))
        second = create_request(first.dataset_id, idempotency_key="two")
        ended, waiting = [
            (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
            for request in (first, second)
        ]
        run = await backend.runs.get()
        with _database_away():
            run.say(step=3)
            run.finish(0)
            while "jobs cannot be stored now" not in caplog.text:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ListTrainingJobs(
                        training_pb2.ListTrainingJobsRequest(), metadata=ALICE
                    )
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "try again" in str(caught.value.details())
        job = await _last(stub, ended)
        assert (job.state, job.step) == (State.STATE_SUCCEEDED, 3)
        (await backend.runs.get()).finish(0)
        assert (await _last(stub, waiting)).state == State.STATE_SUCCEEDED
        assert backend.runs.empty()


async def test_stopping_while_the_database_is_away_waits_for_every_run(
    plain_model: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configured, backend = settings(plain_model, tmp_path, max_running_jobs=2), ToldBackend()
    async with open_trainer_server(
        configured, registry=CollectorRegistry(), backend=backend
    ) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = training_pb2_grpc.TrainingServiceStub(channel)
            first = create_request(await upload(stub, photos))
            second = create_request(first.dataset_id, idempotency_key="two")
            ids = [
                (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
                for request in (first, second)
            ]
        quick, slow = [await backend.runs.get() for _ in ids]
        slow.deaf = True
        with _database_away():
            quick.finish(0)
            await _logged(caplog, "jobs cannot be stored now")
            stopping = asyncio.create_task(server.stop())
            await _logged(caplog, "jobs are stored at the next start")
            assert not stopping.done()
            slow.finish(143)
            await stopping
        assert not server.failed.done()
    async with serving(configured, backend) as stub:
        for _ in ids:
            (await backend.runs.get()).finish(0)
        for job_id in ids:
            assert (await _last(stub, job_id)).state == State.STATE_SUCCEEDED


async def test_a_job_that_ends_while_the_running_ones_are_read_stays_ended(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = JobStore.running_jobs
    reading, ended = asyncio.Event(), asyncio.Event()

    async def slowly(store: JobStore) -> list[TrainingJob]:
        found = await read(store)
        if found:
            reading.set()
            await ended.wait()
        return found

    backend = ToldBackend()
    configured = settings(plain_model, tmp_path, max_running_jobs=2)
    async with serving(configured, backend) as stub:
        first = create_request(await upload(stub, photos))
        failing = (await stub.CreateTrainingJob(first, metadata=ALICE)).job.id
        run = await backend.runs.get()
        monkeypatch.setattr(JobStore, "running_jobs", slowly)
        second = create_request(first.dataset_id, idempotency_key="two")
        await stub.CreateTrainingJob(second, metadata=ALICE)
        await reading.wait()
        run.finish(1)
        assert (await _last(stub, failing)).state == State.STATE_FAILED
        ended.set()
        (await backend.runs.get()).finish(0)
        assert (await _last(stub, failing)).state == State.STATE_FAILED
        assert backend.runs.empty()


async def test_no_room_for_a_dataset_is_said_and_nothing_of_it_is_kept(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_upload: Upload, _piece: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        with monkeypatch.context() as patched:
            patched.setattr(Upload, "write", full)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await upload(stub, photos)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "disk is full" in str(caught.value.details())
        assert [path for path in (tmp_path / "datasets").rglob("*") if path.is_file()] == []
        assert await upload(stub, photos)


async def test_a_job_whose_run_had_no_room_says_so_and_can_be_resumed(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path), backend) as stub:
        request = create_request(await upload(stub, photos))
        job_id = (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
        (await backend.runs.get()).finish(EXIT_DISK_FULL)
        failed = await _last(stub, job_id)
        assert failed.failure_reason == training_pb2.TRAINING_FAILURE_REASON_UNUSABLE_FILES
        assert "the disk is full" in failed.failure_message
        resuming = training_pb2.ResumeTrainingJobRequest(id=job_id)
        await stub.ResumeTrainingJob(resuming, metadata=ALICE)
        (await backend.runs.get()).finish(0)
        assert (await _last(stub, job_id)).state == State.STATE_SUCCEEDED
