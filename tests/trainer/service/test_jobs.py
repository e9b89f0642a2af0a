import math
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from limner.v1 import training_pb2
from services.storage.database import open_engine
from services.trainer.store import JobStore
from tests.trainer.service.harness import (
    ALICE,
    BOB,
    Stub,
    ToldBackend,
    create_request,
    serving,
    settings,
    upload,
    upload_messages,
)

State = training_pb2.TrainingJob


async def _states(stub: Stub, job_id: str) -> list[int]:
    watched = stub.WatchTrainingJob(training_pb2.WatchTrainingJobRequest(id=job_id), metadata=ALICE)
    return [message.job.state async for message in watched]


async def _refused(call: Any) -> tuple[grpc.StatusCode, dict[str, str], str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = _details(caught.value)
    info, violations = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(violations)
    return (
        caught.value.code(),
        {found.field: found.reason for found in violations.field_violations},
        info.reason,
    )


def _details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    trailers = dict(error.trailing_metadata() or ())
    return status_pb2.Status.FromString(trailers["grpc-status-details-bin"])


async def test_a_job_goes_from_queue_to_success_under_a_watcher(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path), backend) as stub:
        dataset = await upload(stub, photos)
        created = await stub.CreateTrainingJob(create_request(dataset), metadata=ALICE)
        run = await backend.runs.get()
        assert run.tree["optimization"] == {"step_count": 4}
        losses = {"step": 2, "instance_loss": 0.5, "prior_loss": 0.25, "learning_rate": 1e-4}
        run.say(step=2, losses=losses, eta_s=3.0, class_picture_count=100)
        watched = stub.WatchTrainingJob(
            training_pb2.WatchTrainingJobRequest(id=created.job.id), metadata=ALICE
        )
        seen = []
        async for message in watched:
            seen.append(message.job)
            if message.job.step == 2:
                run.say(state="succeeded", step=4, losses=losses)
                run.finish(0)
        middle = next(job for job in seen if job.step == 2)
        assert middle.state == State.STATE_RUNNING
        assert (middle.progress.instance_loss, middle.progress.prior_loss) == (0.5, 0.25)
        assert middle.progress.eta.seconds == 3
        assert (seen[-1].state, seen[-1].step) == (State.STATE_SUCCEEDED, 4)
        assert str(tmp_path) not in seen[-1].configuration_yaml


async def test_the_same_key_is_the_same_job_and_another_request_under_it_is_refused(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        dataset = await upload(stub, photos)
        first = await stub.CreateTrainingJob(create_request(dataset), metadata=ALICE)
        second = await stub.CreateTrainingJob(create_request(dataset), metadata=ALICE)
        assert first.job.id == second.job.id
        other = create_request(dataset, instance_prompt="a sks cat")
        code, _, reason = await _refused(stub.CreateTrainingJob(other, metadata=ALICE))
        assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_USED")


async def test_all_violations_come_at_once_and_nothing_is_stored(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        dataset = await upload(stub, photos)
        request = create_request(
            dataset,
            idempotency_key="",
            instance_prompt="a dog",
            class_prompt="",
            configuration_yaml=(
                "output: /etc\nprior: {images: /etc, loss_weight: 2}\n"
                "optimization: {learning_rate: -1}\nlora: {rang: 3}"
            ),
        )
        code, violations, _ = await _refused(stub.CreateTrainingJob(request, metadata=ALICE))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert violations == {
            "idempotency_key": "OUT_OF_RANGE",
            "instance_prompt": "IMPOSSIBLE_COMBINATION",
            "class_prompt": "REQUIRED",
            "configuration_yaml.output": "UNKNOWN_KEY",
            "configuration_yaml.prior.images": "UNKNOWN_KEY",
            "configuration_yaml.optimization.learning_rate": "GREATER_THAN",
            "configuration_yaml.lora.rang": "UNKNOWN_KEY",
        }
        nothing = create_request("0" * 64, base_model="huge", method=9)
        _, violations, _ = await _refused(stub.CreateTrainingJob(nothing, metadata=ALICE))
        assert violations == {
            "base_model": "UNKNOWN_MODEL",
            "dataset_id": "UNKNOWN_DATASET",
            "method": "UNKNOWN_METHOD",
        }
        listed = await stub.ListTrainingJobs(training_pb2.ListTrainingJobsRequest(), metadata=ALICE)
        assert not listed.jobs


@pytest.mark.parametrize(
    "text",
    [
        *("a: &x [1]\nb: *x", "[" * 20, "- 1", "a: [", "x: 1\n" * 20000),
        *("validation: {prompts: [!!binary aGk=]}", '"\\ud800": 1'),
        "lora: {denoiser_targets: !!set {to_q}}",
    ],
)
async def test_hostile_yaml_is_refused(
    plain_model: Path, photos: Path, tmp_path: Path, text: str
) -> None:
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        dataset = await upload(stub, photos)
        request = create_request(dataset, configuration_yaml=text)
        _, violations, _ = await _refused(stub.CreateTrainingJob(request, metadata=ALICE))
        assert set(violations) == {"configuration_yaml"}


async def test_an_account_sees_neither_datasets_nor_jobs_of_another(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        dataset = await upload(stub, photos)
        job = (await stub.CreateTrainingJob(create_request(dataset), metadata=ALICE)).job
        _, violations, _ = await _refused(
            stub.CreateTrainingJob(create_request(dataset), metadata=BOB)
        )
        assert violations == {"dataset_id": "UNKNOWN_DATASET"}
        for call in (
            stub.GetTrainingJob(training_pb2.GetTrainingJobRequest(id=job.id), metadata=BOB),
            stub.CancelTrainingJob(training_pb2.CancelTrainingJobRequest(id=job.id), metadata=BOB),
            stub.ResumeTrainingJob(training_pb2.ResumeTrainingJobRequest(id=job.id), metadata=BOB),
            stub.DeleteTrainingJob(training_pb2.DeleteTrainingJobRequest(id=job.id), metadata=BOB),
        ):
            code, _, reason = await _refused(call)
            assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")


async def test_cancel_resume_and_delete(plain_model: Path, photos: Path, tmp_path: Path) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path), backend) as stub:
        dataset = await upload(stub, photos)
        job = (await stub.CreateTrainingJob(create_request(dataset), metadata=ALICE)).job
        waits = create_request(dataset, idempotency_key="two")
        queued = (await stub.CreateTrainingJob(waits, metadata=ALICE)).job
        await backend.runs.get()
        delete = training_pb2.DeleteTrainingJobRequest(id=job.id)
        code, _, reason = await _refused(stub.DeleteTrainingJob(delete, metadata=ALICE))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_ENDED")

        cancelled = await stub.CancelTrainingJob(
            training_pb2.CancelTrainingJobRequest(id=queued.id), metadata=ALICE
        )
        assert cancelled.job.state == State.STATE_CANCELLED
        await stub.CancelTrainingJob(
            training_pb2.CancelTrainingJobRequest(id=job.id), metadata=ALICE
        )
        assert (await _states(stub, job.id))[-1] == State.STATE_CANCELLED

        resume = training_pb2.ResumeTrainingJobRequest(id=job.id)
        await stub.ResumeTrainingJob(resume, metadata=ALICE)
        again = await backend.runs.get()
        code, _, reason = await _refused(stub.ResumeTrainingJob(resume, metadata=ALICE))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_RESUMABLE")
        again.finish(0)
        assert (await _states(stub, job.id))[-1] == State.STATE_SUCCEEDED
        folder = tmp_path / "jobs" / job.id
        assert folder.is_dir()
        await stub.DeleteTrainingJob(delete, metadata=ALICE)
        assert not folder.exists()


@pytest.mark.parametrize(
    ("exit_code", "status", "reason"),
    [
        (42, {"reason": "BAD_INPUT", "message": "bad"}, "BAD_INPUT"),
        (1, {"reason": "OUT_OF_MEMORY", "message": "none left"}, "OUT_OF_MEMORY"),
        (1, {}, "INTERNAL"),
        (-9, {}, "KILLED"),
    ],
)
async def test_a_failed_job_says_why(
    plain_model: Path,
    photos: Path,
    tmp_path: Path,
    exit_code: int,
    status: dict[str, str],
    reason: str,
) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path), backend) as stub:
        dataset = await upload(stub, photos)
        job = (await stub.CreateTrainingJob(create_request(dataset), metadata=ALICE)).job
        run = await backend.runs.get()
        run.say(**status)
        run.finish(exit_code)
        assert (await _states(stub, job.id))[-1] == State.STATE_FAILED
        ended = await stub.GetTrainingJob(
            training_pb2.GetTrainingJobRequest(id=job.id), metadata=ALICE
        )
        name = training_pb2.TrainingFailureReason.Name(ended.job.failure_reason)
        assert name == f"TRAINING_FAILURE_REASON_{reason}"
        assert ended.job.failure_message


@pytest.mark.parametrize("left", [b"", b'{"state": "ru', b"[]", b'{"state": "running"}', None])
async def test_a_status_file_that_cannot_be_read_ends_no_service(
    plain_model: Path, photos: Path, tmp_path: Path, left: bytes | None
) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path), backend) as stub:
        dataset = await upload(stub, photos)
        job_id = (await stub.CreateTrainingJob(create_request(dataset), metadata=ALICE)).job.id
        run = await backend.runs.get()
        run.say(step=2)
        status = Path(run.tree["output"]) / "status.json"
        if left is None:
            status.unlink()
            status.mkdir()
        else:
            status.write_bytes(left)
        run.finish(1)
        request = training_pb2.WatchTrainingJobRequest(id=job_id)
        jobs = [each.job async for each in stub.WatchTrainingJob(request, metadata=ALICE)]
        assert jobs[-1].state == training_pb2.TrainingJob.STATE_FAILED


async def test_jobs_outlive_the_service(plain_model: Path, photos: Path, tmp_path: Path) -> None:
    configured = settings(plain_model, tmp_path)
    backend = ToldBackend()
    async with serving(configured, backend) as stub:
        dataset = await upload(stub, photos)
        job = (await stub.CreateTrainingJob(create_request(dataset), metadata=ALICE)).job
        await backend.runs.get()
    async with serving(configured, backend) as stub:
        (await backend.runs.get()).finish(0)
        assert (await _states(stub, job.id))[-1] == State.STATE_SUCCEEDED


async def test_losses_of_a_training_that_diverged_are_left_out(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    backend = ToldBackend()
    configured = settings(plain_model, tmp_path)
    async with serving(configured, backend) as stub:
        request = create_request(await upload(stub, photos))
        job_id = (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
        run = await backend.runs.get()
        losses = {"instance_loss": math.nan, "prior_loss": math.inf, "learning_rate": 1e-4}
        run.say(step=2, losses=losses, validation_loss=math.nan)
        run.finish(0)
        assert (await _states(stub, job_id))[-1] == State.STATE_SUCCEEDED
    engine = open_engine(configured.jobs_url())
    job = await JobStore(engine).get("alice", job_id)
    await engine.dispose()
    assert (job.progress.step, job.progress.learning_rate) == (2, 1e-4)
    assert job.progress.instance_loss is None
    assert job.progress.prior_loss is None
    assert job.progress.validation_loss is None


async def test_pages_hold_every_job_once(plain_model: Path, photos: Path, tmp_path: Path) -> None:
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        dataset = await upload(stub, photos)
        for index in range(5):
            request = create_request(dataset, idempotency_key=str(index))
            await stub.CreateTrainingJob(request, metadata=ALICE)
        ids: list[str] = []
        token = ""
        while True:
            page = await stub.ListTrainingJobs(
                training_pb2.ListTrainingJobsRequest(page_size=2, page_token=token),
                metadata=ALICE,
            )
            ids += [job.id for job in page.jobs]
            token = page.next_page_token
            if not token:
                break
        assert len(ids) == len(set(ids)) == 5
        early = urlsafe_b64encode(b"0001-01-01T00:00:00+23:59 job_1").decode()
        for wrong in ("nonsense", early):
            bad = training_pb2.ListTrainingJobsRequest(page_token=wrong)
            _, violations, _ = await _refused(stub.ListTrainingJobs(bad, metadata=ALICE))
            assert violations == {"page_token": "MALFORMED"}


async def test_bad_uploads_are_refused_with_every_fault_and_leave_nothing(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    good = (photos / "0.png").read_bytes()
    files = [
        ("a.png", good),
        ("../../b.png", good),
        ("c.png", b"GIF89a" + bytes(200)),
        ("d.png", good[:200]),
    ]
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        call = stub.UploadDataset(upload_messages(files), metadata=ALICE)
        _, violations, _ = await _refused(call)
        assert violations == {
            "pictures[1]": "DUPLICATE",
            "pictures[2]": "NOT_AN_IMAGE",
            "pictures[3]": "BROKEN",
        }
        headless = iter([training_pb2.UploadDatasetRequest(data=good)])
        _, violations, _ = await _refused(stub.UploadDataset(headless, metadata=ALICE))
        assert violations == {"file_name": "REQUIRED"}
        _, violations, _ = await _refused(stub.UploadDataset(iter([]), metadata=ALICE))
        assert violations == {"pictures": "REQUIRED"}
        kept = [path for path in (tmp_path / "datasets").rglob("*") if path.is_file()]
        assert not kept
        assert await upload(stub, photos) == await upload(stub, photos)
