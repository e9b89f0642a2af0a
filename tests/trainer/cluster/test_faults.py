"""An API that forgets, hangs up and refuses: a service that follows runs all the same."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from limner.v1 import training_pb2
from services.trainer.cluster.api import (
    AlreadyThereError,
    ClusterApi,
    ClusterAwayError,
    ClusterRefusedError,
    open_api,
)
from services.trainer.cluster.watching import Watched
from services.trainer.server import open_trainer_server
from tests.trainer.cluster.api_server import NAMESPACE, ApiServer, serving_api
from tests.trainer.cluster.harness import State, cluster, seen, until
from tests.trainer.service.harness import ALICE, create_request, upload

_LABELS = {"app": "x"}


def _job(name: str) -> dict[str, object]:
    return {"metadata": {"name": name, "labels": _LABELS}, "spec": {"suspend": True}}


def _lists(api: ApiServer) -> int:
    return sum(method == "GET" and "watch" not in query for method, _, query in api.requests)


def _kubeconfig(server: ApiServer, folder: Path) -> Path:
    path = folder / "kubeconfig"
    path.write_text(server.kubeconfig())
    return path


def _opened(server: ApiServer, folder: Path) -> AbstractAsyncContextManager[ClusterApi]:
    return open_api(NAMESPACE, _kubeconfig(server, folder))


@pytest.mark.parametrize("gone_as_status", [False, True])
async def test_a_watch_goes_on_after_a_drop_and_lists_again_where_history_is_gone(
    tmp_path: Path, gone_as_status: bool
) -> None:
    async with serving_api() as server:
        server.faults.gone_as_status = gone_as_status
        server.add("Job", _job("a"))
        async with _opened(server, tmp_path) as api:
            told: list[str] = []
            watched = Watched(
                api,
                "Job",
                "app=x",
                resync_s=300.0,
                changed=lambda found: told.append(found["metadata"]["name"]),
            )
            following = asyncio.create_task(watched.follow())
            await until(lambda: set(watched.objects) == {"a"})
            server.add("Job", _job("b"))
            server.add("Job", {"metadata": {"name": "of-others", "labels": {"app": "y"}}})
            await until(lambda: set(watched.objects) == {"a", "b"})

            await until(lambda: server.drop_watches() > 0)
            server.add("Job", _job("c"))
            server.remove("Job", "a")
            await until(lambda: set(watched.objects) == {"b", "c"})
            assert _lists(server) == 1  # from where it was, without asking for everything again

            server.faults.cut_off = True
            server.add("Job", _job("e"))
            await until(lambda: "e" in watched.objects)
            server.remove("Job", "e")
            await until(lambda: "e" not in watched.objects)
            assert _lists(server) == 1

            server.faults.no_bookmarks = True
            await until(lambda: server.drop_watches() > 0)
            server.add("Job", _job("d"))
            server.remove("Job", "b")
            server.forget_history()
            await until(lambda: set(watched.objects) == {"c", "d"})
            assert _lists(server) == 2
            assert told.count("b") == 2  # it came, and was missing from the second list
            following.cancel()
            await asyncio.wait([following])


async def test_everything_is_listed_again_now_and_then(tmp_path: Path) -> None:
    async with serving_api() as server, _opened(server, tmp_path) as api:
        watched = Watched(api, "Pod", "", resync_s=0.2, changed=lambda found: None)
        following = asyncio.create_task(watched.follow())
        await until(lambda: _lists(server) >= 3)
        following.cancel()
        await asyncio.wait([following])


async def test_a_service_may_start_before_its_cluster_answers(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path) as up:
        up.api.faults.refuse_all = (503, "etcdserver: leader changed")
        async with up.serving() as stub:
            request = create_request(await upload(stub, photos))
            job_id = (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
            await until(lambda: len(up.api.requests) > 2)
            up.api.faults.refuse_all = None
            await seen(stub, job_id, lambda job: job.step == 3)


@pytest.mark.parametrize("status", [429, 500])
async def test_a_run_is_created_as_soon_as_the_cluster_can(
    plain_model: Path, photos: Path, tmp_path: Path, status: int
) -> None:
    async with cluster(plain_model, tmp_path) as up, up.serving() as stub:
        up.api.faults.refuse_create["Job"] = (status, "not now")
        request = create_request(await upload(stub, photos))
        job_id = (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
        waiting = await seen(stub, job_id, lambda job: "not answer" in job.waiting_message)
        assert waiting.state == State.STATE_QUEUED
        up.api.faults.refuse_create.clear()
        await seen(stub, job_id, lambda job: job.step == 3)
        assert len(up.api.objects("Job")) == 1


async def test_a_service_that_died_before_its_secret_was_made_makes_it_later(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path) as up:
        up.api.faults.refuse_create["Secret"] = (500, "not now")
        async with up.serving() as stub:
            request = create_request(await upload(stub, photos))
            job_id = (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
            await until(lambda: bool(up.api.objects("Pod")))
        up.api.faults.refuse_create.clear()
        async with up.serving() as stub:
            await seen(stub, job_id, lambda job: job.step == 3)
            assert len(up.api.objects("Job")) == 1


async def test_deleting_a_training_job_removes_its_jobs(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path) as up, up.serving() as stub:
        request = create_request(await upload(stub, photos))
        job_id = (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
        await seen(stub, job_id, lambda job: job.step == 3)
        up.end(job_id, 42)
        await seen(stub, job_id, lambda job: job.state == State.STATE_FAILED)
        assert up.api.objects("Job")
        delete = training_pb2.DeleteTrainingJobRequest(id=job_id)
        await stub.DeleteTrainingJob(delete, metadata=ALICE)
        await until(lambda: not up.api.objects("Job"))
        assert not up.api.objects("Secret")


async def test_errors_of_the_api_are_told_apart(tmp_path: Path) -> None:
    async with serving_api() as server:
        kubeconfig = _kubeconfig(server, tmp_path)
        async with open_api(NAMESPACE, kubeconfig) as api:
            assert await api.find_job("none") is None
            created = server.add("Job", _job("a"))
            with pytest.raises(AlreadyThereError):
                await api.delete_job("a", uid="of-another")
            await api.delete_job("none", uid="of-another")
            server.faults.refuse_all = (429, "slow down")
            with pytest.raises(ClusterAwayError) as away:
                await api.find_job("a")
            assert away.value.retry_after_s == 1.0
            server.faults.refuse_all = (401, "the token has expired")
            with pytest.raises(ClusterAwayError):
                await api.find_job("a")
            server.faults.refuse_all = (403, "forbidden")
            with pytest.raises(ClusterRefusedError, match="403: forbidden"):
                await api.delete_job("a", uid=created["metadata"]["uid"])
        async with open_api("elsewhere", kubeconfig) as api:
            server.faults.refuse_all = None
            with pytest.raises(ClusterRefusedError, match="namespace not found"):
                await api.list_objects("Job", "")
    async with open_api(NAMESPACE, kubeconfig) as api:
        with pytest.raises(ClusterAwayError):
            await api.find_job("a")


async def test_without_a_way_to_a_cluster_there_is_no_service(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot reach Kubernetes"):
        async with open_api(NAMESPACE, tmp_path / "none"):
            pass
    with pytest.raises(OSError, match="cannot reach Kubernetes"):
        async with open_api(NAMESPACE, None):
            pass


async def test_a_run_is_followed_through_dropped_watches_and_forgotten_history(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path) as up, up.serving() as stub:
        request = create_request(await upload(stub, photos))
        job_id = (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
        await seen(stub, job_id, lambda job: job.step == 3)
        await until(lambda: up.api.drop_watches() >= 2)
        up.end(job_id, 0)
        await until(lambda: up.controller.exit_codes == [0])
        up.api.forget_history()
        await seen(stub, job_id, lambda job: job.state == State.STATE_SUCCEEDED)


async def test_a_failure_is_told_by_its_pods_though_their_watch_is_behind(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path) as up, up.serving() as stub:
        request = create_request(await upload(stub, photos))
        job_id = (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id
        await seen(stub, job_id, lambda job: job.step == 3)
        up.api.faults.silent.add("Pod")
        up.controller.run_out_of_memory()
        failed = await seen(stub, job_id, lambda job: job.state == State.STATE_FAILED)
        assert failed.failure_reason == training_pb2.TRAINING_FAILURE_REASON_OUT_OF_MEMORY


async def test_a_service_that_may_not_look_fails_and_says_so(
    plain_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(plain_model, tmp_path) as up:
        up.api.faults.refuse_all = (403, "jobs is forbidden")
        opening = open_trainer_server(up.settings, registry=CollectorRegistry())
        async with opening as server:
            assert isinstance(await asyncio.shield(server.failed), BaseException)
    assert "the cluster does not let this service look" in caplog.text
