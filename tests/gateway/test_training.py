"""Training through the gateway: relayed as it is, paid by the step, exactly once."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest

from limner.v1 import training_pb2 as pb
from limner.v1 import training_pb2_grpc
from services.gateway import training_servicer
from services.gateway.training_holds import TrainingHolds, new_hold
from services.gateway.training_servicer import TrainingServicer
from services.storage.database import open_engine
from tests.diffusion.tiny import write_plain_model
from tests.gateway.actors import ACTOR
from tests.gateway.harness import PEPPER, reason
from tests.gateway.training import STEP_MILLICREDITS, STEPS, Door, door, usage
from tests.gateway.unspoken import log_lines, spoken
from tests.gateway.waiting import until
from tests.trainer.run.runs import write_photos
from tests.trainer.service.harness import create_request

State = pb.TrainingJob
WHOLE = STEPS * STEP_MILLICREDITS


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain_model(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


async def _refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def _ends(photos: Path) -> list[bytes]:
    """The pictures without what every PNG begins with."""
    return [photo.read_bytes()[100:] for photo in photos.iterdir()]


async def _charged(door: Door) -> int:
    return (await door.usage()).charged_millicredits


async def test_a_training_is_reserved_whole_and_costs_its_steps(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, base, monthly_millicredits=1000) as behind:
        dataset = await behind.upload(photos)
        assert await _charged(behind) == 0
        call = behind.stub.CreateTrainingJob(create_request(dataset), metadata=behind.key)
        job = (await call).job
        headers = dict(await call.trailing_metadata())
        assert headers["x-limner-estimated-credits"] == "0.08"
        assert headers["x-ratelimit-remaining-credits"] == "0.92"
        assert await _charged(behind) == WHOLE
        run = await behind.runs.runs.get()
        run.say(step=STEPS)
        run.finish(0)
        assert (await behind.end(job.id)).state == State.STATE_SUCCEEDED
        assert await _charged(behind) == WHOLE
        assert (await behind.usage()).request_count == 1


async def test_a_repeated_create_is_the_same_job_and_charged_once(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, base) as behind:
        dataset = await behind.upload(photos)
        first, second = await behind.create(dataset), await behind.create(dataset)
        assert first.id == second.id
        assert await _charged(behind) == WHOLE
        other = create_request(dataset, token="tok", instance_prompt="a tok dog")
        refused = await _refusal(behind.stub.CreateTrainingJob(other, metadata=behind.key))
        assert reason(refused) == "IDEMPOTENCY_KEY_USED"
        assert await _charged(behind) == WHOLE


@pytest.mark.parametrize(("exit_code", "state"), [(1, "STATE_FAILED"), (143, "STATE_CANCELLED")])
async def test_steps_that_were_not_done_are_given_back_and_a_resume_pays_the_rest(
    base: Path, photos: Path, tmp_path: Path, exit_code: int, state: str
) -> None:
    async with door(tmp_path, base, monthly_millicredits=WHOLE) as behind:
        job = await behind.create(await behind.upload(photos))
        run = await behind.runs.runs.get()
        run.say(step=1)
        named = pb.CancelTrainingJobRequest(id=job.id)
        if exit_code == 143:
            await behind.stub.CancelTrainingJob(named, metadata=behind.key)
        else:
            run.finish(exit_code)
        ended = await behind.end(job.id)
        assert State.State.Name(ended.state) == state
        assert await _charged(behind) == STEP_MILLICREDITS
        resumed = await behind.stub.ResumeTrainingJob(
            pb.ResumeTrainingJobRequest(id=job.id), metadata=behind.key
        )
        assert resumed.job.attempt == 2
        assert await _charged(behind) == WHOLE
        run = await behind.runs.runs.get()
        run.say(step=STEPS)
        run.finish(0)
        assert (await behind.end(job.id)).state == State.STATE_SUCCEEDED
        assert await _charged(behind) == WHOLE


async def test_steps_that_are_done_again_are_not_paid_again_however_often_it_stops(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, base) as behind:
        job = await behind.create(await behind.upload(photos))
        for step in (3, 1, STEPS):  # the second attempt went back to a checkpoint
            run = await behind.runs.runs.get()
            run.say(step=step)
            run.finish(0 if step == STEPS else 1)
            await behind.end(job.id)
            assert await _charged(behind) == STEP_MILLICREDITS * max(step, 3)
            if step < STEPS:
                resuming = pb.ResumeTrainingJobRequest(id=job.id)
                await behind.stub.ResumeTrainingJob(resuming, metadata=behind.key)
                assert await _charged(behind) == WHOLE


async def test_a_job_that_is_cancelled_in_the_queue_costs_nothing(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, base) as behind:
        dataset = await behind.upload(photos)
        await behind.create(dataset)
        waiting = await behind.create(dataset, idempotency_key="two")
        assert await _charged(behind) == 2 * WHOLE
        request = pb.CancelTrainingJobRequest(id=waiting.id)
        await behind.stub.CancelTrainingJob(request, metadata=behind.key)
        assert await _charged(behind) == WHOLE


async def test_without_the_credits_nothing_is_stored(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, base, monthly_millicredits=WHOLE - 1) as behind:
        request = create_request(await behind.upload(photos))
        refused = await _refusal(behind.stub.CreateTrainingJob(request, metadata=behind.key))
        assert reason(refused) == "CREDITS_EXHAUSTED"
        listed = await behind.stub.ListTrainingJobs(
            pb.ListTrainingJobsRequest(), metadata=behind.key
        )
        assert not listed.jobs
        assert await _charged(behind) == 0
        request.validate_only = True
        planned = await behind.stub.CreateTrainingJob(request, metadata=behind.key)
        assert (planned.job.id, planned.job.step_count) == ("", STEPS)


async def test_bad_input_is_told_whole_and_costs_nothing(base: Path, tmp_path: Path) -> None:
    async with door(tmp_path, base) as behind:
        request = create_request(
            "0" * 64, base_model="unknown", configuration_yaml="nonsense: 1", class_prompt=""
        )
        refused = await _refusal(behind.stub.CreateTrainingJob(request, metadata=behind.key))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        text = refused.details() or ""
        for field in ("base_model", "dataset_id", "configuration_yaml.nonsense"):
            assert field in text
        assert (await behind.usage()).request_count == 0


async def test_a_broken_upload_is_told_as_the_trainer_tells_it(base: Path, tmp_path: Path) -> None:
    async with door(tmp_path, base) as behind:
        pieces = [pb.UploadDatasetRequest(file_name="a.png", data=b"no picture")]
        refused = await _refusal(behind.stub.UploadDataset(iter(pieces), metadata=behind.key))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "a.png" in (refused.details() or "")


async def test_an_upload_that_is_refused_half_way_is_told_why(base: Path, tmp_path: Path) -> None:
    def endless() -> Iterator[pb.UploadDatasetRequest]:
        for index in range(5000):
            yield pb.UploadDatasetRequest(file_name=f"{index}.png", data=bytes(10_000))

    async with door(tmp_path, base) as behind:
        refused = await _refusal(behind.stub.UploadDataset(endless(), metadata=behind.key))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "must be at most 100" in (refused.details() or "")


async def test_an_upload_counts_as_a_request(base: Path, photos: Path, tmp_path: Path) -> None:
    async with door(tmp_path, base, requests_per_minute=1, burst=1) as behind:
        dataset = await behind.upload(photos)
        refused = await _refusal(
            behind.stub.CreateTrainingJob(create_request(dataset), metadata=behind.key)
        )
        assert reason(refused) == "RATE_LIMITED"
        assert await _charged(behind) == 0


async def test_twenty_creates_at_once_are_one_job_and_one_charge(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, base, monthly_millicredits=100 * WHOLE) as behind:
        dataset = await behind.upload(photos)
        jobs = await asyncio.gather(*(behind.create(dataset) for _ in range(20)))
        assert len({job.id for job in jobs}) == 1
        assert await _charged(behind) == WHOLE
        run = await behind.runs.runs.get()
        run.say(step=2)
        run.finish(1)
        await behind.end(jobs[0].id)
        resumes = await asyncio.gather(
            *(
                behind.stub.ResumeTrainingJob(
                    pb.ResumeTrainingJobRequest(id=jobs[0].id), metadata=behind.key
                )
                for _ in range(5)
            ),
            return_exceptions=True,
        )
        assert sum(not isinstance(each, BaseException) for each in resumes) == 1
        assert await _charged(behind) == WHOLE
        assert (await behind.usage()).request_count == 2


async def test_without_the_trainer_the_answer_is_unavailable(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, base) as behind:
        request = create_request(await behind.upload(photos))
        await behind.trainer.grpc.drain(0)
        refused = await _refusal(behind.stub.CreateTrainingJob(request, metadata=behind.key))
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert await _charged(behind) == 0


async def test_a_key_without_the_scope_is_refused(base: Path, photos: Path, tmp_path: Path) -> None:
    async with door(tmp_path, base) as behind:
        key, _ = await behind.gateway.store.create_key(
            account="acme",
            name="weak",
            pepper=PEPPER.encode(),
            actor=ACTOR,
            scopes=frozenset({"generate"}),
        )
        call = behind.stub.ListTrainingJobs(
            pb.ListTrainingJobsRequest(), metadata=(("authorization", f"Bearer {key.text}"),)
        )
        assert reason(await _refusal(call)) == "SCOPE_MISSING"


async def test_a_model_outside_the_tier_is_refused(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, base, models=["other"]) as behind:
        request = create_request(await behind.upload(photos))
        refused = await _refusal(behind.stub.CreateTrainingJob(request, metadata=behind.key))
        assert reason(refused) == "MODEL_NOT_ALLOWED"


async def test_an_attempt_that_its_caller_never_heard_of_is_paid_all_the_same(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    """A gateway that is killed between the trainer's answer and the charge leaves exactly this."""
    async with door(tmp_path, base) as behind:
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
    base: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, base) as behind:
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
        assert await _charged(behind) == WHOLE
        await holds.open(hold)
        await _until_charged(behind, 0)
        await engine.dispose()


async def test_an_attempt_is_taken_in_time_or_never(
    base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with door(tmp_path, base) as behind:
        dataset = await behind.upload(photos)
        monkeypatch.setattr(training_servicer, "RESERVING_TIMEOUT_S", 1.0)
        monkeypatch.setattr(behind.trainer.store, "create", hang)
        refused = await _refusal(behind.create(dataset))
        assert refused.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await ended.wait()


async def test_a_job_that_ended_while_the_gateway_was_away_is_settled_when_it_is_back(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, base) as behind:
        job = await behind.create(await behind.upload(photos))
        (await behind.runs.runs.get()).say(step=1)
    assert (await usage(tmp_path)).charged_millicredits == WHOLE
    async with door(tmp_path, base) as behind:
        (await behind.runs.runs.get()).say(step=3)
        request = pb.CancelTrainingJobRequest(id=job.id)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{behind.trainer.port}") as channel:
            direct = training_pb2_grpc.TrainingServiceStub(channel)
            await direct.CancelTrainingJob(request, metadata=(("x-limner-account", "acme"),))
        await _until_charged(behind, 3 * STEP_MILLICREDITS)


async def test_deleting_settles_first(base: Path, photos: Path, tmp_path: Path) -> None:
    async with door(tmp_path, base) as behind:
        job = await behind.create(await behind.upload(photos))
        run = await behind.runs.runs.get()
        run.say(step=STEPS)
        run.finish(0)
        await behind.end(job.id)
        await behind.stub.DeleteTrainingJob(
            pb.DeleteTrainingJobRequest(id=job.id), metadata=behind.key
        )
        get = behind.stub.GetTrainingJob(pb.GetTrainingJobRequest(id=job.id), metadata=behind.key)
        assert reason(await _refusal(get)) == "JOB_NOT_FOUND"
        assert await _charged(behind) == WHOLE


@pytest.mark.parametrize("call", ["Resume", "Delete"])
async def test_a_job_that_ends_while_it_is_looked_at_neither_goes_on_nor_is_gone_unpaid(
    base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async with door(tmp_path, base) as behind:
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
            refused = await _refusal(calling)
        assert refused.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert reason(refused) in ("JOB_NOT_RESUMABLE", "JOB_NOT_ENDED")
        assert "running" in str(refused.details())
        assert (await behind.end(job.id)).attempt == 1
        assert behind.runs.runs.empty()


@pytest.mark.parametrize("call", ["Resume", "Delete"])
async def test_an_attempt_that_came_between_two_calls_is_neither_paid_again_nor_forgotten(
    base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async with door(tmp_path, base) as behind:
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
            refused = await _refusal(calling)
        assert reason(refused) in ("JOB_NOT_RESUMABLE", "JOB_NOT_ENDED")
        assert "resumed meanwhile" in str(refused.details())
        assert (await behind.end(job.id)).attempt == 2
        assert await _charged(behind) == 3 * STEP_MILLICREDITS
        assert behind.runs.runs.empty()


async def _until_charged(behind: Door, millicredits: int) -> None:
    async def is_charged() -> bool:
        return await _charged(behind) == millicredits

    await until(is_charged)


async def test_neither_key_nor_prompt_nor_picture_nor_webhook_secret_is_told(
    base: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In no log, neither of the gateway nor of the trainer, in no metric and no error."""
    caplog.set_level(logging.DEBUG)
    prompts = {"instance_prompt": "the minister's sks dog", "class_prompt": "a minister's dog"}
    secret = "of the webhook, 0123456789"
    told = []
    async with door(tmp_path, base, monthly_millicredits=WHOLE) as behind:
        dataset = await behind.upload(photos)
        job = await behind.create(dataset, **prompts)
        run = await behind.runs.runs.get()
        run.say(step=STEPS)
        run.finish(0)
        assert (await behind.end(job.id)).state == State.STATE_SUCCEEDED
        for number, changes in enumerate(
            (
                {},  # of which the credits are spent
                {"base_model": "no such model"},
                {"dataset_id": "0" * 32},
                {"instance_prompt": "the minister's cat", "token": "sks"},
                {"configuration_yaml": "optimization: {step_count: -1}"},
                {"webhook_url": "http://127.0.0.1/", "webhook_secret": secret},
            )
        ):
            fields = {"dataset_id": dataset, "idempotency_key": f"again {number}"}
            request = create_request(**(fields | prompts | changes))
            error = await _refusal(behind.stub.CreateTrainingJob(request, metadata=behind.key))
            told.append(f"{error.details()} {error.trailing_metadata()}")
        told.append(generate_latest(behind.gateway.registry).decode())
        key = behind.gateway.key
    logged = log_lines(caplog.records)
    assert len(logged) > 10
    hidden = [*prompts.values(), "the minister's cat", secret]
    for data in _ends(photos):
        assert spoken([*told, *logged], key=key, prompts=hidden, data=data) == []
