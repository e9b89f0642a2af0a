"""What a Job and its pods say about a run: how it ended, or what it waits for.

Pure functions of what the cluster shows; the reasons are those of Kubernetes 1.31 and later
("Pod conditions", "Pod failure policy", "Job termination").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from services.runtime.errors import clip
from services.trainer.backends.backend import RunEnd, RunWait
from services.trainer.cluster.manifests import CONTAINER, EXIT_KILLED, Manifest
from services.trainer.job import FailureReason, JobFailure
from services.trainer.run.violations import EXIT_FAILED, EXIT_REFUSED, EXIT_STOPPED

DISRUPTIONS: frozenset[FailureReason] = frozenset({"EVICTED", "PREEMPTED", "NODE_LOST"})
"""What sends a run elsewhere without ending it."""

_CONDITIONS: Mapping[str, FailureReason] = MappingProxyType(
    {
        "PreemptionByScheduler": "PREEMPTED",
        "EvictionByEvictionAPI": "EVICTED",
        "TerminationByKubelet": "EVICTED",
        "DeletionByTaintManager": "NODE_LOST",
        "DeletionByPodGC": "NODE_LOST",
    }
)
_POD_REASONS: Mapping[str, FailureReason] = MappingProxyType(
    {
        "Evicted": "EVICTED",
        "Preempting": "PREEMPTED",
        "NodeLost": "NODE_LOST",
        "NodeShutdown": "NODE_LOST",
        "Terminated": "NODE_LOST",
        "UnexpectedAdmissionError": "UNSCHEDULABLE",
        "NodeAffinity": "UNSCHEDULABLE",
        "TopologyAffinityError": "UNSCHEDULABLE",
    }
)
_IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "ImageInspectError",
        "InvalidImageName",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_CONTAINER_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_MESSAGES: Mapping[FailureReason, str] = MappingProxyType(
    {
        "OUT_OF_MEMORY": "the run needed more memory than it may have",
        "EVICTED": "the run had to leave its machine",
        "PREEMPTED": "the run had to make room for one of higher priority",
        "NODE_LOST": "the machine of the run was lost",
        "UNSCHEDULABLE": "no machine of the cluster can take the run",
        "KILLED": "the run was killed; it can be resumed",
        "CLUSTER_REFUSED": "the cluster could not start the run",
        "TIMED_OUT": "the run took longer than the operator allows",
    }
)
_ACTIVE = ("Pending", "Running", "Unknown")
_MAX_MESSAGE_BYTES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class PodWait:
    """A wait, and since when, where it must not last for ever."""

    wait: RunWait
    since: datetime | None = None
    is_start: bool = False
    """Whether nothing is known to be in the way, so that only time can tell that something is."""


def end_of(job: Manifest, pods: Iterable[Manifest]) -> RunEnd | None:
    """How the run of a Job ended; None: it has not."""
    conditions = {key: one for key, one in _conditions(job).items() if one["status"] == "True"}
    if "Complete" in conditions:
        return RunEnd(exit_code=0)
    failed = conditions.get("Failed")
    if failed is None:
        return None
    if failed.get("reason") == "DeadlineExceeded":
        return _failed("TIMED_OUT")
    newest_first = sorted(_failed_pods(pods), key=_ended_at, reverse=True)
    # Pods that were disrupted or stopped are replaced and fail no Job: those that it takes along
    # when it fails come last of all.
    ends = [_end_of_pod(pod) for pod in newest_first if not _is_disrupted(pod)]
    ends = [end for end in ends if end.exit_code != EXIT_STOPPED]
    # What one of several pods had against going on; the others only noticed its absence.
    decisive = [end for end in ends if end.exit_code in (EXIT_REFUSED, EXIT_KILLED)]
    return next(iter((*decisive, *ends)), RunEnd(exit_code=EXIT_FAILED))


def wait_of(job: Manifest, pods: Sequence[Manifest]) -> PodWait | None:
    """What keeps a run that has not ended from going on; None: nothing does."""
    if job["spec"].get("suspend"):
        return PodWait(wait=RunWait(reason=None, message="it waits in the queue of the cluster"))
    active = [pod for pod in pods if pod.get("status", {}).get("phase") in (None, *_ACTIVE)]
    expected_count = job["spec"].get("parallelism") or 1
    stuck = [wait for pod in active if (wait := _stuck(pod)) is not None]
    if stuck:
        return stuck[0]
    # On several nodes the first one still writes what the others have nothing to do with.
    going = [pod for pod in pods if pod.get("status", {}).get("phase") in ("Running", "Succeeded")]
    if len(going) >= expected_count:
        return None
    newest_first = sorted(_failed_pods(pods), key=_ended_at, reverse=True)
    return PodWait(wait=_starting(newest_first), is_start=True)


def _starting(failed: Sequence[Manifest]) -> RunWait:
    """The wait for a first pod, or for the successor of the one that failed last."""
    if not failed:
        return RunWait(reason=None, message="the cluster starts the run")
    failure = _end_of_pod(failed[0]).failure
    if failure is None:
        return RunWait(reason=None, message="the run failed and is tried again")
    return _going_on_elsewhere(failure)


def _going_on_elsewhere(failure: JobFailure) -> RunWait:
    return RunWait(reason=failure.reason, message=f"{failure.message}; it goes on elsewhere")


def _stuck(pod: Manifest) -> PodWait | None:
    """Why a pod cannot begin, or has to leave, where that is known."""
    conditions = _conditions(pod)
    if _is_disrupted(pod) and (failure := _end_of_pod(pod).failure) is not None:
        return PodWait(wait=_going_on_elsewhere(failure))
    scheduled = conditions.get("PodScheduled", {})
    since = _moment(scheduled.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"])
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        told = scheduled.get("message", "")
        message = f"{_MESSAGES['UNSCHEDULABLE']}: {told}" if told else _MESSAGES["UNSCHEDULABLE"]
        return PodWait(wait=_wait("UNSCHEDULABLE", message), since=since)
    # Not of the run's own container alone: it waits for those that the cluster adds.
    for status in _all_statuses(pod):
        reason = status.get("state", {}).get("waiting", {}).get("reason", "")
        if reason in _IMAGE_REASONS:
            message = f"the cluster cannot get the software of the run ({reason})"
            return PodWait(wait=_wait("IMAGE_PULL", message), since=since)
        if reason in _CONTAINER_REASONS:
            message = f"the cluster cannot start the run ({reason})"
            return PodWait(wait=_wait("CLUSTER_REFUSED", message), since=since)
    return None


def _end_of_pod(pod: Manifest) -> RunEnd:
    """How a pod that failed ended. What disrupted it matters more than how its process took it."""
    if _is_disrupted(pod):
        why = _conditions(pod)["DisruptionTarget"].get("reason", "")
        return _failed(_CONDITIONS.get(why, "EVICTED"))
    terminated = _terminated(pod)
    exit_code = int(terminated["exitCode"]) if terminated else EXIT_FAILED
    reason = _reason_of(pod)
    if reason is not None:
        return _failed(reason, exit_code)
    if terminated is None:
        # Nobody knows, unless one that the cluster adds ended first, such as an init container.
        states = (status.get("state", {}) for status in _all_statuses(pod))
        is_known = any(state.get("terminated", {}).get("exitCode") for state in states)
        return _failed("CLUSTER_REFUSED" if is_known else "KILLED")
    if terminated.get("reason") == "OOMKilled":
        return _failed("OUT_OF_MEMORY", exit_code)
    if exit_code > 128 and exit_code != EXIT_STOPPED:
        return _failed("KILLED", exit_code)
    return RunEnd(exit_code=exit_code)


def _reason_of(pod: Manifest) -> FailureReason | None:
    """What a node had against a pod as a whole, whatever its containers say of their ends."""
    told: str = pod["status"].get("reason", "")
    # OutOfmemory, OutOfnvidia.com/gpu: another pod was faster, after the scheduler had chosen.
    return "UNSCHEDULABLE" if told.startswith("OutOf") else _POD_REASONS.get(told)


def _failed(reason: FailureReason, exit_code: int = EXIT_FAILED) -> RunEnd:
    return RunEnd(exit_code=exit_code, failure=JobFailure(reason=reason, message=_MESSAGES[reason]))


def _wait(reason: FailureReason, message: str) -> RunWait:
    return RunWait(reason=reason, message=clip(message, _MAX_MESSAGE_BYTES))


def _failed_pods(pods: Iterable[Manifest]) -> Iterator[Manifest]:
    return (pod for pod in pods if pod.get("status", {}).get("phase") == "Failed")


def _conditions(found: Manifest) -> dict[str, Manifest]:
    """Conditions by type, whether they hold or not."""
    return {one["type"]: one for one in found.get("status", {}).get("conditions") or ()}


def _is_disrupted(pod: Manifest) -> bool:
    return _conditions(pod).get("DisruptionTarget", {}).get("status") == "True"


def _all_statuses(pod: Manifest) -> Iterator[Manifest]:
    """Of the run's own container and of those that the cluster adds."""
    for listed in ("initContainerStatuses", "containerStatuses"):
        yield from pod.get("status", {}).get(listed) or ()


def _terminated(pod: Manifest) -> Manifest | None:
    """How the run's own container ended; None: it has not, or never began."""
    own = (status for status in _all_statuses(pod) if status["name"] == CONTAINER)
    return next((status.get("state", {}).get("terminated") for status in own), None)


def _ended_at(pod: Manifest) -> str:
    """When its process ended, as text that sorts like time."""
    terminated = _terminated(pod) or {}
    return str(terminated.get("finishedAt") or pod["metadata"]["creationTimestamp"])


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
