"""Training through the gateway: relayed as it is, paid by the step, exactly once."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client import generate_latest

from limner.v1 import training_pb2 as pb
from tests.gateway.actors import ACTOR
from tests.gateway.harness import PEPPER, reason
from tests.gateway.training import STEP_MILLICREDITS, STEPS, WHOLE, door, refusal
from tests.gateway.unspoken import log_lines, spoken
from tests.trainer.service.harness import create_request

State = pb.TrainingJob


def _ends(photos: Path) -> list[bytes]:
    """The pictures without what every PNG begins with."""
    return [photo.read_bytes()[100:] for photo in photos.iterdir()]


async def test_a_training_is_reserved_whole_and_costs_its_steps(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model, monthly_millicredits=1000) as behind:
        dataset = await behind.upload(photos)
        assert await behind.charged() == 0
        call = behind.stub.CreateTrainingJob(create_request(dataset), metadata=behind.key)
        job = (await call).job
        headers = dict(await call.trailing_metadata())
        assert headers["x-limner-estimated-credits"] == "0.08"
        assert headers["x-ratelimit-remaining-credits"] == "0.92"
        assert await behind.charged() == WHOLE
        run = await behind.runs.runs.get()
        run.say(step=STEPS)
        run.finish(0)
        assert (await behind.end(job.id)).state == State.STATE_SUCCEEDED
        assert await behind.charged() == WHOLE
        assert (await behind.usage()).request_count == 1


async def test_a_repeated_create_is_the_same_job_and_charged_once(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model) as behind:
        dataset = await behind.upload(photos)
        first, second = await behind.create(dataset), await behind.create(dataset)
        assert first.id == second.id
        assert await behind.charged() == WHOLE
        other = create_request(dataset, token="tok", instance_prompt="a tok dog")
        refused = await refusal(behind.stub.CreateTrainingJob(other, metadata=behind.key))
        assert reason(refused) == "IDEMPOTENCY_KEY_USED"
        assert await behind.charged() == WHOLE


@pytest.mark.parametrize(("exit_code", "state"), [(1, "STATE_FAILED"), (143, "STATE_CANCELLED")])
async def test_steps_that_were_not_done_are_given_back_and_a_resume_pays_the_rest(
    plain_model: Path, photos: Path, tmp_path: Path, exit_code: int, state: str
) -> None:
    async with door(tmp_path, plain_model, monthly_millicredits=WHOLE) as behind:
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
        assert await behind.charged() == STEP_MILLICREDITS
        resumed = await behind.stub.ResumeTrainingJob(
            pb.ResumeTrainingJobRequest(id=job.id), metadata=behind.key
        )
        assert resumed.job.attempt == 2
        assert await behind.charged() == WHOLE
        run = await behind.runs.runs.get()
        run.say(step=STEPS)
        run.finish(0)
        assert (await behind.end(job.id)).state == State.STATE_SUCCEEDED
        assert await behind.charged() == WHOLE


async def test_steps_that_are_done_again_are_not_paid_again_however_often_it_stops(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model) as behind:
        job = await behind.create(await behind.upload(photos))
        for step in (3, 1, STEPS):  # the second attempt went back to a checkpoint
            run = await behind.runs.runs.get()
            run.say(step=step)
            run.finish(0 if step == STEPS else 1)
            await behind.end(job.id)
            assert await behind.charged() == STEP_MILLICREDITS * max(step, 3)
            if step < STEPS:
                resuming = pb.ResumeTrainingJobRequest(id=job.id)
                await behind.stub.ResumeTrainingJob(resuming, metadata=behind.key)
                assert await behind.charged() == WHOLE


async def test_a_job_that_is_cancelled_in_the_queue_costs_nothing(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model) as behind:
        dataset = await behind.upload(photos)
        await behind.create(dataset)
        waiting = await behind.create(dataset, idempotency_key="two")
        assert await behind.charged() == 2 * WHOLE
        request = pb.CancelTrainingJobRequest(id=waiting.id)
        await behind.stub.CancelTrainingJob(request, metadata=behind.key)
        assert await behind.charged() == WHOLE


async def test_without_the_credits_nothing_is_stored(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model, monthly_millicredits=WHOLE - 1) as behind:
        request = create_request(await behind.upload(photos))
        refused = await refusal(behind.stub.CreateTrainingJob(request, metadata=behind.key))
        assert reason(refused) == "CREDITS_EXHAUSTED"
        listed = await behind.stub.ListTrainingJobs(
            pb.ListTrainingJobsRequest(), metadata=behind.key
        )
        assert not listed.jobs
        assert await behind.charged() == 0
        request.validate_only = True
        planned = await behind.stub.CreateTrainingJob(request, metadata=behind.key)
        assert (planned.job.id, planned.job.step_count) == ("", STEPS)


async def test_bad_input_is_told_whole_and_costs_nothing(plain_model: Path, tmp_path: Path) -> None:
    async with door(tmp_path, plain_model) as behind:
        request = create_request(
            "0" * 64, base_model="unknown", configuration_yaml="nonsense: 1", class_prompt=""
        )
        refused = await refusal(behind.stub.CreateTrainingJob(request, metadata=behind.key))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        text = refused.details() or ""
        for field in ("base_model", "dataset_id", "configuration_yaml.nonsense"):
            assert field in text
        assert (await behind.usage()).request_count == 0


async def test_a_broken_upload_is_told_as_the_trainer_tells_it(
    plain_model: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model) as behind:
        pieces = [pb.UploadDatasetRequest(file_name="a.png", data=b"no picture")]
        refused = await refusal(behind.stub.UploadDataset(iter(pieces), metadata=behind.key))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "a.png" in (refused.details() or "")


async def test_an_upload_that_is_refused_half_way_is_told_why(
    plain_model: Path, tmp_path: Path
) -> None:
    def endless() -> Iterator[pb.UploadDatasetRequest]:
        for index in range(5000):
            yield pb.UploadDatasetRequest(file_name=f"{index}.png", data=bytes(10_000))

    async with door(tmp_path, plain_model) as behind:
        refused = await refusal(behind.stub.UploadDataset(endless(), metadata=behind.key))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "must be at most 100" in (refused.details() or "")


async def test_an_upload_counts_as_a_request(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model, requests_per_minute=1, burst=1) as behind:
        dataset = await behind.upload(photos)
        refused = await refusal(
            behind.stub.CreateTrainingJob(create_request(dataset), metadata=behind.key)
        )
        assert reason(refused) == "RATE_LIMITED"
        assert await behind.charged() == 0


async def test_twenty_creates_at_once_are_one_job_and_one_charge(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model, monthly_millicredits=100 * WHOLE) as behind:
        dataset = await behind.upload(photos)
        jobs = await asyncio.gather(*(behind.create(dataset) for _ in range(20)))
        assert len({job.id for job in jobs}) == 1
        assert await behind.charged() == WHOLE
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
        assert await behind.charged() == WHOLE
        assert (await behind.usage()).request_count == 2


async def test_without_the_trainer_the_answer_is_unavailable(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model) as behind:
        request = create_request(await behind.upload(photos))
        await behind.trainer.grpc.drain(0)
        refused = await refusal(behind.stub.CreateTrainingJob(request, metadata=behind.key))
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert await behind.charged() == 0


async def test_a_key_without_the_scope_is_refused(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model) as behind:
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
        assert reason(await refusal(call)) == "SCOPE_MISSING"


async def test_a_model_outside_the_tier_is_refused(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with door(tmp_path, plain_model, models=["other"]) as behind:
        request = create_request(await behind.upload(photos))
        refused = await refusal(behind.stub.CreateTrainingJob(request, metadata=behind.key))
        assert reason(refused) == "MODEL_NOT_ALLOWED"


async def test_neither_key_nor_prompt_nor_picture_nor_webhook_secret_is_told(
    plain_model: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In no log, neither of the gateway nor of the trainer, in no metric and no error."""
    caplog.set_level(logging.DEBUG)
    prompts = {"instance_prompt": "the minister's sks dog", "class_prompt": "a minister's dog"}
    secret = "of the webhook, 0123456789"
    told = []
    async with door(tmp_path, plain_model, monthly_millicredits=WHOLE) as behind:
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
            error = await refusal(behind.stub.CreateTrainingJob(request, metadata=behind.key))
            told.append(f"{error.details()} {error.trailing_metadata()}")
        told.append(generate_latest(behind.gateway.registry).decode())
        key = behind.gateway.key
    logged = log_lines(caplog.records)
    assert len(logged) > 10
    hidden = [*prompts.values(), "the minister's cat", secret]
    for data in _ends(photos):
        assert spoken([*told, *logged], key=key, prompts=hidden, data=data) == []
