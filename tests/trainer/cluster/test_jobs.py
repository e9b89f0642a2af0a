"""Jobs of a service in a cluster, with runs that train nothing: what happens to them on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from limner.v1 import training_pb2
from services.trainer.cluster import cluster_run
from tests.trainer.cluster.harness import Cluster, State, cluster, seen, until
from tests.trainer.service.harness import ALICE, Stub, create_request, upload

Reason = training_pb2.TrainingFailureReason


def _is(state: int) -> Callable[[State], bool]:
    return lambda job: job.state == state


def _runs(job: State) -> bool:
    return job.state == State.STATE_RUNNING and job.step == 3


async def _create(stub: Stub, photos: Path, **changes: str) -> str:
    request = create_request(await upload(stub, photos), **changes)
    return (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id


@asynccontextmanager
async def _running(
    base: Path, photos: Path, folder: Path, **changes: object
) -> AsyncIterator[tuple[Cluster, Stub, str]]:
    """A cluster, a service and a job whose run goes on."""
    async with cluster(base, folder, **changes) as up, up.serving() as stub:
        job_id = await _create(stub, photos)
        await seen(stub, job_id, _runs)
        yield up, stub, job_id


async def test_a_job_is_one_kubernetes_job_however_often_it_is_asked_for(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path) as up, up.serving() as stub:
        dataset = await upload(stub, photos)
        request = create_request(dataset)
        calls = [stub.CreateTrainingJob(request, metadata=ALICE) for _ in range(3)]
        ids = {(await call).job.id for call in calls}
        (job_id,) = ids
        running = await seen(stub, job_id, _runs)
        # By the pod's own report: the service looks at the file every quarter of a minute only.
        assert running.progress.prior_loss == 0.25
        up.end(job_id, 0)
        ended = await seen(stub, job_id, _is(State.STATE_SUCCEEDED))
        assert ended.step == 9
        created = [one for one in up.api.requests if one[0] == "POST" and one[1].endswith("/jobs")]
        assert len(created) == 1
        assert up.job["metadata"]["labels"]["limner.dev/job"] == job_id


async def test_runs_go_on_while_the_service_is_away(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path) as up:
        async with up.serving() as stub:
            job_id = await _create(stub, photos)
            await seen(stub, job_id, _runs)
            other = await _create(stub, photos, idempotency_key="two")
            await seen(stub, other, _runs)
        assert up.controller.running_count == 2
        up.end(other, 0)
        await until(lambda: up.controller.running_count == 1)
        async with up.serving() as stub:
            await seen(stub, other, _is(State.STATE_SUCCEEDED))
            await seen(stub, job_id, _runs)
            up.end(job_id, 0)
            await seen(stub, job_id, _is(State.STATE_SUCCEEDED))
        assert up.controller.exit_codes == [0, 0]


@pytest.mark.parametrize(
    ("exit_code", "state", "reason"),
    [
        (0, State.STATE_SUCCEEDED, Reason.TRAINING_FAILURE_REASON_UNSPECIFIED),
        (42, State.STATE_FAILED, Reason.TRAINING_FAILURE_REASON_BAD_INPUT),
        (None, State.STATE_FAILED, Reason.TRAINING_FAILURE_REASON_LOST),
    ],
)
async def test_a_job_that_is_gone_when_the_service_is_back_is_known_by_what_it_wrote(
    plain_model: Path,
    photos: Path,
    tmp_path: Path,
    exit_code: int | None,
    state: int,
    reason: int,
) -> None:
    async with cluster(plain_model, tmp_path) as up:
        async with up.serving() as stub:
            job_id = await _create(stub, photos)
            await seen(stub, job_id, _runs)
        if exit_code is None:
            up.api.remove("Job", up.job["metadata"]["name"])
        else:
            up.end(job_id, exit_code)
            await until(lambda: bool(up.job.get("status")))
            up.controller.let_ttl_pass()
        assert not up.api.objects("Job")
        async with up.serving() as stub:
            job = await seen(stub, job_id, _is(state))
            assert job.failure_reason == reason
        assert not up.api.objects("Secret")


async def test_a_run_whose_job_is_gone_is_not_lost_while_its_volume_cannot_be_read(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with _running(plain_model, photos, tmp_path) as (up, stub, job_id):
        status = up.output(job_id) / "status.json"
        up.end(job_id, 0)
        await until(lambda: "succeeded" in status.read_text())
        text = status.read_text()
        status.unlink()
        status.mkdir()
        up.api.remove("Job", up.job["metadata"]["name"])
        asked = len(up.api.requests)
        await until(lambda: sum(one[0] == "GET" for one in up.api.requests[asked:]) > 2)
        status.rmdir()
        status.write_text(text)
        await seen(stub, job_id, _is(State.STATE_SUCCEEDED))


async def test_an_evicted_run_goes_on_in_another_pod_and_its_owner_is_told(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with _running(plain_model, photos, tmp_path) as (up, stub, job_id):
        up.controller.unschedulable = "0/3 nodes are available: 3 Insufficient cpu."
        up.controller.evict("PreemptionByScheduler")
        waiting = await seen(stub, job_id, _is(State.STATE_QUEUED))
        assert waiting.waiting_reason == Reason.TRAINING_FAILURE_REASON_PREEMPTED
        assert "higher priority" in waiting.waiting_message
        await seen(stub, job_id, lambda job: "Insufficient cpu" in job.waiting_message)
        up.controller.unschedulable = None
        running = await seen(stub, job_id, _runs)
        assert not running.waiting_message
        assert up.controller.exit_codes == [143]
        up.end(job_id, 0)
        await seen(stub, job_id, _is(State.STATE_SUCCEEDED))


async def test_a_run_that_runs_out_of_memory_fails_with_that_reason_and_can_be_resumed(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with _running(plain_model, photos, tmp_path) as (up, stub, job_id):
        up.controller.run_out_of_memory()
        failed = await seen(stub, job_id, _is(State.STATE_FAILED))
        assert failed.failure_reason == Reason.TRAINING_FAILURE_REASON_OUT_OF_MEMORY
        assert up.controller.exit_codes == [137]  # once: exactly the same would only happen again
        request = training_pb2.ResumeTrainingJobRequest(id=job_id)
        resumed = (await stub.ResumeTrainingJob(request, metadata=ALICE)).job
        assert resumed.attempt == 2
        await until(lambda: len(up.api.objects("Job")) == 2)
        up.end(job_id, 0)
        await seen(stub, job_id, _is(State.STATE_SUCCEEDED))


async def test_a_run_that_fails_is_tried_again_as_often_as_allowed(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path, kubernetes_retry_count=2) as up:
        async with up.serving() as stub:
            job_id = await _create(stub, photos)
            await seen(stub, job_id, _runs)
            up.end(job_id, 1)
            failed = await seen(stub, job_id, _is(State.STATE_FAILED))
        assert failed.failure_reason == Reason.TRAINING_FAILURE_REASON_INTERNAL
        assert up.controller.exit_codes == [1, 1, 1]


async def test_a_run_that_takes_too_long_fails_with_that_reason(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with _running(plain_model, photos, tmp_path) as (up, stub, job_id):
        up.controller.exceed_deadlines()
        failed = await seen(stub, job_id, _is(State.STATE_FAILED))
        assert failed.failure_reason == Reason.TRAINING_FAILURE_REASON_TIMED_OUT
        await until(lambda: up.controller.exit_codes == [143])


@pytest.mark.parametrize(
    ("trouble", "reason", "told"),
    [
        ("unschedulable", "UNSCHEDULABLE", "2 Insufficient nvidia.com/gpu"),
        ("image_error", "IMAGE_PULL", "ImagePullBackOff"),
    ],
)
async def test_a_run_that_cannot_begin_says_why_while_it_waits_and_fails_if_that_lasts(
    plain_model: Path, photos: Path, tmp_path: Path, trouble: str, reason: str, told: str
) -> None:
    async with cluster(plain_model, tmp_path, kubernetes_pending_s=4.0) as up:
        setattr(up.controller, trouble, told)
        async with up.serving() as stub:
            job_id = await _create(stub, photos)
            waiting = await seen(stub, job_id, lambda job: told in job.waiting_message)
            assert waiting.state == State.STATE_QUEUED
            assert Reason.Name(waiting.waiting_reason).endswith(reason)
            failed = await seen(stub, job_id, _is(State.STATE_FAILED))
            assert Reason.Name(failed.failure_reason).endswith(reason)
            assert told in failed.failure_message
            # Nothing is left that could begin later, and cost.
            assert not up.api.objects("Job")


async def test_a_run_for_which_no_pod_can_be_made_does_not_wait_for_ever(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_run, "_LONGEST_START_S", 0.5)
    monkeypatch.setattr(cluster_run, "_LOOK_S", 0.2)
    async with cluster(plain_model, tmp_path, kubernetes_pending_s=0.5) as up:
        up.controller.makes_no_pods = True
        async with up.serving() as stub:
            job_id = await _create(stub, photos)
            failed = await seen(stub, job_id, _is(State.STATE_FAILED))
            assert failed.failure_reason == Reason.TRAINING_FAILURE_REASON_CLUSTER_REFUSED
            assert "did not start" in failed.failure_message
            assert not up.api.objects("Job")


async def test_cancelling_deletes_the_job_after_its_pod_had_time_for_a_checkpoint(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with _running(plain_model, photos, tmp_path) as (up, stub, job_id):
        request = training_pb2.CancelTrainingJobRequest(id=job_id)
        await stub.CancelTrainingJob(request, metadata=ALICE)
        await seen(stub, job_id, _is(State.STATE_CANCELLED))
        assert up.controller.exit_codes == [143]
        assert not up.api.objects("Job")
        assert not up.api.objects("Secret")
        deleting = [one for one in up.api.requests if one[0] == "DELETE"]
        assert len(deleting) == 1


async def test_a_job_that_waits_in_a_queue_of_the_cluster_is_queued_until_it_is_admitted(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    queued = cluster(plain_model, tmp_path, kubernetes_queue="team")
    async with queued as up, up.serving() as stub:
        job_id = await _create(stub, photos)
        waiting = await seen(stub, job_id, lambda job: "queue of the" in job.waiting_message)
        assert waiting.state == State.STATE_QUEUED
        assert up.controller.running_count == 0
        up.controller.unsuspend()
        await seen(stub, job_id, _runs)


@pytest.mark.parametrize("kind", ["Job", "Secret"])
async def test_a_cluster_that_refuses_a_run_fails_the_job_and_keeps_nothing_of_it(
    plain_model: Path, photos: Path, tmp_path: Path, kind: str
) -> None:
    async with cluster(plain_model, tmp_path) as up:
        up.api.faults.refuse_create[kind] = (403, "exceeded quota: gpus")
        async with up.serving() as stub:
            job_id = await _create(stub, photos)
            failed = await seen(stub, job_id, _is(State.STATE_FAILED))
            assert not up.api.objects("Job")
    assert failed.failure_reason == Reason.TRAINING_FAILURE_REASON_CLUSTER_REFUSED
    assert "quota" not in failed.failure_message  # that is the operator's business


async def test_a_job_that_is_cancelled_before_the_cluster_has_answered_leaves_nothing(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path) as up, up.serving() as stub:
        up.api.faults.refuse_create["Job"] = (500, "not now")
        job_id = await _create(stub, photos)
        await seen(stub, job_id, lambda job: "not answer" in job.waiting_message)
        request = training_pb2.CancelTrainingJobRequest(id=job_id)
        await stub.CancelTrainingJob(request, metadata=ALICE)
        await seen(stub, job_id, _is(State.STATE_CANCELLED))
        assert not up.api.objects("Job")


async def test_another_job_under_the_name_of_a_run_is_not_taken_for_it(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with _running(plain_model, photos, tmp_path) as (up, stub, job_id):
        second = up.job["metadata"]["name"].removesuffix("-1") + "-2"
        up.end(job_id, 42)
        await seen(stub, job_id, _is(State.STATE_FAILED))
        up.api.add("Job", {"metadata": {"name": second}, "spec": {"suspend": True}})
        request = training_pb2.ResumeTrainingJobRequest(id=job_id)
        await stub.ResumeTrainingJob(request, metadata=ALICE)
        failed = await seen(stub, job_id, _is(State.STATE_FAILED))
        assert failed.failure_reason == Reason.TRAINING_FAILURE_REASON_CLUSTER_REFUSED
        assert up.api.find("Job", second) is not None
