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
FailureReason = Literal["BAD_INPUT", "OUT_OF_MEMORY", "UNUSABLE_FILES", "KILLED", "INTERNAL"]

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


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFailure:
    """Why a job failed."""

    reason: FailureReason
    message: str


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
    create_time: datetime
    update_time: datetime
