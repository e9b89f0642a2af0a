"""Attempts at a training that callers, the trainer or the gateway lose sight of: paid once."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from limner.v1 import training_pb2 as pb
from limner.v1 import training_pb2_grpc
from services.gateway import training_servicer
from services.gateway.training_holds import TrainingHolds, new_hold
from services.gateway.training_servicer import TrainingServicer
from services.storage.database import open_engine
from tests.gateway.harness import reason
from tests.gateway.training import STEP_MILLICREDITS, STEPS, WHOLE, Door, door, refusal, usage
from tests.gateway.waiting import until
from tests.trainer.service.harness import create_request

State = pb.TrainingJob


async def test_an_attempt_that_its_caller_never_heard_of_is_paid_all_the_same(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    """A gateway that is killed between the trainer's answer and the charge leaves exactly this."""
    async with door(tmp_path, plain_model) as behind:
        dataset = await behind.upload(photos)
        engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/gateway.db")
        holds = TrainingHolds(engine)
        hold = new_hold(
            account="acme", model="tiny", step_millicredits=STEP_MILLICREDITS, step_count=STEPS
        )
        await holds.open(hold)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{behind.trainer.port}") as channel:
            direct = training_pb2_grpc.TrainingServiceStub(channel)
            told = (("x-limner-account", "acme"), ("x-limner-reservation", hold.id))
            created = await direct.CreateTrainingJob(create_request(dataset), metadata=told)
        assert created.job.id == hold.job_id
        await _until_charged(behind, WHOLE)
        run = await behind.runs.runs.get()
        run.say(step=2)
        run.finish(1)
        await _until_charged(behind, 2 * STEP_MILLICREDITS)
        assert not await holds.list_open()
        await engine.dispose()


async def test_an_attempt_that_the_trainer_never_took_is_refunded(
    plain_model: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model) as behind:
        engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/gateway.db")
        holds = TrainingHolds(engine)
        long_ago = datetime.now(UTC) - timedelta(minutes=11)
        hold = new_hold(
            account="acme",
            model="tiny",
            step_millicredits=STEP_MILLICREDITS,
            step_count=STEPS,
        )
        hold = replace(hold, opened_at=long_ago)
        await holds.pay(hold)
        assert await behind.charged() == WHOLE
        await holds.open(hold)
        await _until_charged(behind, 0)
        await engine.dispose()


async def test_an_attempt_is_taken_in_time_or_never(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with door(tmp_path, plain_model) as behind:
        dataset = await behind.upload(photos)
        monkeypatch.setattr(training_servicer, "RESERVING_TIMEOUT_S", 1.0)
        monkeypatch.setattr(behind.trainer.store, "create", hang)
        refused = await refusal(behind.create(dataset))
        assert refused.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await ended.wait()


async def test_a_job_that_ended_while_the_gateway_was_away_is_settled_when_it_is_back(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model) as behind:
        job = await behind.create(await behind.upload(photos))
        (await behind.runs.runs.get()).say(step=1)
    assert (await usage(tmp_path)).charged_millicredits == WHOLE
    async with door(tmp_path, plain_model) as behind:
        (await behind.runs.runs.get()).say(step=3)
        request = pb.CancelTrainingJobRequest(id=job.id)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{behind.trainer.port}") as channel:
            direct = training_pb2_grpc.TrainingServiceStub(channel)
            await direct.CancelTrainingJob(request, metadata=(("x-limner-account", "acme"),))
        await _until_charged(behind, 3 * STEP_MILLICREDITS)


async def test_deleting_settles_first(plain_model: Path, photos: Path, tmp_path: Path) -> None:
    async with door(tmp_path, plain_model) as behind:
        job = await behind.create(await behind.upload(photos))
        run = await behind.runs.runs.get()
        run.say(step=STEPS)
        run.finish(0)
        await behind.end(job.id)
        await behind.stub.DeleteTrainingJob(
            pb.DeleteTrainingJobRequest(id=job.id), metadata=behind.key
        )
        get = behind.stub.GetTrainingJob(pb.GetTrainingJobRequest(id=job.id), metadata=behind.key)
        assert reason(await refusal(get)) == "JOB_NOT_FOUND"
        assert await behind.charged() == WHOLE


@pytest.mark.parametrize("call", ["Resume", "Delete"])
async def test_a_job_that_ends_while_it_is_looked_at_neither_goes_on_nor_is_gone_unpaid(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async with door(tmp_path, plain_model) as behind:
        job = await behind.create(await behind.upload(photos))
        run = await behind.runs.runs.get()
        look = TrainingServicer._job

        async def look_and_end(servicer: TrainingServicer, job_id: str) -> State:
            seen = await look(servicer, job_id)
            run.say(step=1)
            run.finish(1)
            await _until_charged(behind, STEP_MILLICREDITS)
            return seen

        with monkeypatch.context() as patched:
            patched.setattr(TrainingServicer, "_job", look_and_end)
            asked = getattr(pb, f"{call}TrainingJobRequest")(id=job.id)
            calling = getattr(behind.stub, f"{call}TrainingJob")(asked, metadata=behind.key)
            refused = await refusal(calling)
        assert refused.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert reason(refused) in ("JOB_NOT_RESUMABLE", "JOB_NOT_ENDED")
        assert "running" in str(refused.details())
        assert (await behind.end(job.id)).attempt == 1
        assert behind.runs.runs.empty()


@pytest.mark.parametrize("call", ["Resume", "Delete"])
async def test_an_attempt_that_came_between_two_calls_is_neither_paid_again_nor_forgotten(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async with door(tmp_path, plain_model) as behind:
        job = await behind.create(await behind.upload(photos))
        first = await behind.runs.runs.get()
        first.say(step=1)
        first.finish(1)
        await behind.end(job.id)
        look = TrainingServicer._job

        async def look_while_another_resumes(servicer: TrainingServicer, job_id: str) -> State:
            seen = await look(servicer, job_id)
            patched.undo()
            resuming = pb.ResumeTrainingJobRequest(id=job_id)
            await behind.stub.ResumeTrainingJob(resuming, metadata=behind.key)
            second = await behind.runs.runs.get()
            second.say(step=3)
            second.finish(1)
            await behind.end(job_id)
            return seen

        with monkeypatch.context() as patched:
            patched.setattr(TrainingServicer, "_job", look_while_another_resumes)
            asked = getattr(pb, f"{call}TrainingJobRequest")(id=job.id)
            calling = getattr(behind.stub, f"{call}TrainingJob")(asked, metadata=behind.key)
            refused = await refusal(calling)
        assert reason(refused) in ("JOB_NOT_RESUMABLE", "JOB_NOT_ENDED")
        assert "resumed meanwhile" in str(refused.details())
        assert (await behind.end(job.id)).attempt == 2
        assert await behind.charged() == 3 * STEP_MILLICREDITS
        assert behind.runs.runs.empty()


async def _until_charged(behind: Door, millicredits: int) -> None:
    async def is_charged() -> bool:
        return await behind.charged() == millicredits

    await until(is_charged)
