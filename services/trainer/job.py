"""A training job: what it is, where it may stand, and which ways lead from there.

    queued ──► running ──► succeeded
      │ ▲        │ │ └────► failed ───┐
      │ └────────┘ └──────► cancelled ┤   resume
      └──────────────────────► ▲      │
        ▲─────────────────────────────┘

A running job goes back to the queue when its run was stopped for reasons of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FailureReason = Literal[
    "BAD_INPUT",
    "OUT_OF_MEMORY",
    "UNUSABLE_FILES",
    "KILLED",
    "INTERNAL",
    "EVICTED",
    "PREEMPTED",
    "NODE_LOST",
    "UNSCHEDULABLE",
    "IMAGE_PULL",
    "TIMED_OUT",
    "LOST",
    "CLUSTER_REFUSED",
]

FINAL_STATES: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        "queued": frozenset({"running", "cancelled"}),
        "running": frozenset({"queued", "succeeded", "failed", "cancelled"}),
        "succeeded": frozenset(),
        "failed": frozenset({"queued"}),
        "cancelled": frozenset({"queued"}),
    }
)


def sources_of(state: JobState) -> tuple[JobState, ...]:
    """States from which a job may come to `state`."""
    return tuple(source for source, targets in TRANSITIONS.items() if state in targets)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobProgress:
    """What the run said last."""

    step: int = 0
    step_count: int = 0
    class_picture_count: int = 0
    instance_loss: float | None = None
    """None until the first step is done."""
    prior_loss: float | None = None
    learning_rate: float = 0.0
    validation_loss: float | None = None
    eta_s: float | None = None
    waiting_reason: FailureReason | None = None
    """Why a run that was handed to a cluster does not go on; what the job fails with if it lasts.
    """
    waiting_message: str = ""
    """The same for people; not empty: the run waits, and the job is shown as queued."""
    samples: tuple[str, ...] = ()
    """The newest sample pictures, relative to the run's output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFailure:
    """Why a job failed."""

    reason: FailureReason
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobWarning:
    """A remark about a request that does not stop it."""

    code: Literal["TOKEN_IS_A_WORD", "MODEL_NOT_SERVED"]
    message: str
    field: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """What was asked for; equal requests under one idempotency key are one job."""

    base_model: str
    dataset_id: str
    instance_prompt: str
    class_prompt: str
    token: str
    method: str
    configuration_yaml: str
    model_name: str = ""
    """Name for what comes out; empty: the job's id."""
    webhook_url: str = ""
    webhook_secret: str = ""

    def model(self, job_id: str) -> str:
        """Name under which the outcome of a job with this id is served."""
        return f"{self.base_model}@{self.model_name or job_id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """A job as it is now."""

    id: str
    account: str
    state: JobState
    request: JobRequest
    tree: Mapping[str, Any]
    """Configuration of the run, the server's paths included."""
    progress: JobProgress
    failure: JobFailure | None
    cancel_requested: bool
    attempt: int
    """How often its owner queued it: 1, and 1 more with each resume."""
    create_time: datetime
    update_time: datetime
    reservation: str
    """What pays for the attempt, as the gateway calls it; empty without a gateway."""
    warnings: tuple[JobWarning, ...]

    @property
    def model(self) -> str:
        """Name under which the outcome is served."""
        return self.request.model(self.id)
