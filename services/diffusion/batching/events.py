"""What the batcher tells about a job while it runs, and where it tells it.

The batcher emits these on the device thread; `services.diffusion.generation` consumes them on the
event loop. Pixels travel raw: encoding them is the consumer's work, off both threads.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from services.diffusion.model import UInt8Array
from services.runtime.errors import LimnerError


@dataclass(frozen=True, kw_only=True, slots=True)
class JobQueued:
    """The job waits; latest wins."""

    position: int
    """Requests ahead of it; 0 is next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobProgressed:
    """The job has come further; latest wins."""

    completed_step_count: int
    total_step_count: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SamplePreviewed:
    """A rough picture of a running sample; latest of each sample wins."""

    index: int
    step: int
    pixels: UInt8Array
    """(H, W, 3)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleFinished:
    """A finished picture; never dropped."""

    index: int
    seed: int
    pixels: UInt8Array
    """(H, W, 3)."""


JobEvent: TypeAlias = JobQueued | JobProgressed | SamplePreviewed | SampleFinished


class EventSink(Protocol):
    """Where a job's events go; calls never block and may come from any thread.

    `services.runtime.event_channel.EventChannel` in production, a list in tests.
    """

    def put_latest(self, key: Hashable, event: JobEvent) -> None:
        """Deliver `event`, or a later one under the same key in its place."""
        ...

    def put(self, event: JobEvent) -> None:
        """Deliver `event` after all that came before."""
        ...

    def close(self, error: LimnerError | None = None) -> None:
        """End the job's events: well, or with the error that ended it."""
        ...
