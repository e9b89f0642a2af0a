"""What Jobs and pods say about a run, as the documentation of Kubernetes describes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from services.trainer.cluster.diagnosis import end_of, wait_of

_CREATED = "2026-01-02T03:04:05Z"


def _job(condition: str | None = None, reason: str = "", **spec: Any) -> dict[str, Any]:
    conditions = [
        {"type": "FailureTarget", "status": "True", "reason": reason},
        {"type": condition, "status": "True", "reason": reason},
    ]
    return {"spec": spec, "status": {"conditions": conditions if condition else []}}


def _pod(
    phase: str, *, conditions: Any = (), state: Any = None, created: str = _CREATED, **status: Any
) -> dict[str, Any]:
    statuses = [{"name": "sidecar", "state": {}}]
    if state is not None:
        statuses.append({"name": "run", "state": state})
    return {
        "metadata": {"creationTimestamp": created},
        "spec": {},
        "status": {"phase": phase, "conditions": list(conditions), "containerStatuses": statuses}
        | status,
    }


def _ended(exit_code: int, reason: str = "Error", at: str = _CREATED) -> dict[str, Any]:
    return {"terminated": {"exitCode": exit_code, "reason": reason, "finishedAt": at}}


def _init(state: Any) -> dict[str, Any]:
    return {"name": "mesh", "state": state}


_NOT_YET = {"waiting": {"reason": "PodInitializing"}}


def _disrupted(reason: str) -> dict[str, str]:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason}


def test_a_job_without_a_final_condition_has_not_ended() -> None:
    assert end_of(_job(), [_pod("Failed", state=_ended(1))]) is None
    target = {"conditions": [{"type": "FailureTarget", "status": "True"}]}
    assert end_of({"spec": {}, "status": target}, []) is None
    assert end_of({"spec": {}}, []) is None


def test_a_complete_job_ended_well() -> None:
    end = end_of(_job("Complete"), [_pod("Failed", state=_ended(137, "OOMKilled"))])
    assert end is not None
    assert (end.exit_code, end.failure) == (0, None)


@pytest.mark.parametrize(
    ("pod", "exit_code", "reason"),
    [
        (_pod("Failed", state=_ended(42)), 42, None),
        (_pod("Failed", state=_ended(1)), 1, None),
        (_pod("Failed", state=_ended(137, "OOMKilled")), 137, "OUT_OF_MEMORY"),
        (_pod("Failed", state=_ended(137)), 137, "KILLED"),
        (_pod("Failed", state=_ended(139)), 139, "KILLED"),
        (_pod("Failed", reason="Evicted"), 1, "EVICTED"),
        (_pod("Failed", reason="NodeLost"), 1, "NODE_LOST"),
        (_pod("Failed", reason="Evicted", containerStatuses=None), 1, "EVICTED"),
        # More on its scratch volume than it may have: no condition, and a SIGKILL.
        (_pod("Failed", reason="Evicted", state=_ended(137)), 137, "EVICTED"),
        (_pod("Failed", reason="OutOfnvidia.com/gpu"), 1, "UNSCHEDULABLE"),
        (
            _pod("Failed", initContainerStatuses=[_init(_ended(137, "OOMKilled"))], state=_NOT_YET),
            1,
            "CLUSTER_REFUSED",
        ),
        (_pod("Failed", state=_ended(1), initContainerStatuses=[_init(_ended(0))]), 1, None),
        (_pod("Failed"), 1, "KILLED"),
    ],
)
def test_a_failed_job_failed_for_what_its_last_pod_failed_for(
    pod: dict[str, Any], exit_code: int, reason: str | None
) -> None:
    before = _pod("Failed", state=_ended(1, at="2026-01-01T00:00:00Z"))
    end = end_of(_job("Failed", "BackoffLimitExceeded"), [pod, before])
    assert end is not None
    assert end.exit_code == exit_code
    assert (end.failure.reason if end.failure else None) == reason


def test_a_deadline_is_the_reason_whatever_the_pods_say() -> None:
    end = end_of(_job("Failed", "DeadlineExceeded"), [_pod("Failed", state=_ended(143))])
    assert end is not None
    assert end.failure is not None
    assert end.failure.reason == "TIMED_OUT"


def test_a_failed_job_without_pods_leaves_the_reason_to_the_run_itself() -> None:
    end = end_of(_job("Failed", "BackoffLimitExceeded"), [])
    assert end is not None
    assert (end.exit_code, end.failure) == (1, None)


def test_pods_that_a_failing_job_takes_along_do_not_hide_what_it_failed_for() -> None:
    late = "2026-01-02T04:00:00Z"
    failed, taken = _pod("Failed", state=_ended(1)), _pod("Failed", state=_ended(143, at=late))
    for pods in ([failed, taken], [taken]):
        end = end_of(_job("Failed", "BackoffLimitExceeded"), pods)
        assert end is not None
        assert (end.exit_code, end.failure) == (1, None)


def test_an_eviction_is_not_what_a_job_failed_for_and_a_refusal_is_wherever_it_came_from() -> None:
    late = "2026-01-02T04:00:00Z"
    evicted = _pod(
        "Failed",
        conditions=[_disrupted("EvictionByEvictionAPI")],
        state=_ended(143, at=late),
    )
    refused = _pod("Failed", state=_ended(42))
    noticed = _pod("Failed", state=_ended(1, at=late))
    end = end_of(_job("Failed", "PodFailurePolicy"), [evicted, noticed, refused])
    assert end is not None
    assert end.exit_code == 42


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("PreemptionByScheduler", "PREEMPTED"),
        ("EvictionByEvictionAPI", "EVICTED"),
        ("TerminationByKubelet", "EVICTED"),
        ("DeletionByTaintManager", "NODE_LOST"),
        ("DeletionByPodGC", "NODE_LOST"),
        ("SomethingNew", "EVICTED"),
    ],
)
def test_a_disrupted_run_says_why_it_waits(why: str, reason: str) -> None:
    leaving = _pod("Running", conditions=[_disrupted(why)])
    gone = _pod("Failed", conditions=[_disrupted(why)], state=_ended(143))
    for pods in ([leaving], [gone], [gone, _pod("Pending")]):
        wait = wait_of(_job(), pods)
        assert wait is not None
        assert wait.wait.reason == reason
        assert wait.since is None  # however long it takes: it goes on


def test_an_unschedulable_pod_waits_since_the_scheduler_said_so() -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available. " + "x" * 1000,
        "lastTransitionTime": "2026-01-02T03:04:06Z",
    }
    wait = wait_of(_job(), [_pod("Pending", conditions=[condition])])
    assert wait is not None
    assert wait.wait.reason == "UNSCHEDULABLE"
    assert "0/1 nodes" in wait.wait.message
    assert len(wait.wait.message.encode()) <= 256
    assert wait.since == datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("ErrImagePull", "IMAGE_PULL"),
        ("InvalidImageName", "IMAGE_PULL"),
        ("CreateContainerConfigError", "CLUSTER_REFUSED"),
    ],
)
def test_a_container_that_cannot_be_made_says_so(why: str, reason: str) -> None:
    state = {"waiting": {"reason": why, "message": "registry.internal/secret: unauthorized"}}
    wait = wait_of(_job(), [_pod("Pending", state=state)])
    assert wait is not None
    assert wait.wait.reason == reason
    assert wait.since is not None
    assert "registry.internal" not in wait.wait.message


def test_a_run_waits_for_containers_that_the_cluster_adds() -> None:
    missing = {"waiting": {"reason": "ImagePullBackOff"}}
    wait = wait_of(
        _job(), [_pod("Pending", initContainerStatuses=[_init(missing)], state=_NOT_YET)]
    )
    assert wait is not None
    assert wait.wait.reason == "IMAGE_PULL"
    assert wait.since is not None


def test_a_run_goes_on_when_all_its_pods_run() -> None:
    running, starting = _pod("Running"), _pod("Pending")
    assert wait_of(_job(), [running]) is None
    assert wait_of(_job(), [_pod("Failed", state=_ended(1)), running]) is None
    assert wait_of(_job(parallelism=2), [running, running]) is None
    assert wait_of(_job(parallelism=2), [running, _pod("Succeeded")]) is None
    for pods in ([], [running], [running, starting]):
        wait = wait_of(_job(parallelism=2), pods)
        assert wait is not None
        assert wait.wait.reason is None


def test_a_suspended_job_waits_in_a_queue() -> None:
    wait = wait_of(_job(suspend=True), [])
    assert wait is not None
    assert (wait.wait.reason, wait.since) == (None, None)
