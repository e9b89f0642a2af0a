"""What the batcher tells about a job while it runs, and where it tells it.

The batcher emits these on the device thread; `services.upscale.upscaling` consumes them on the
event loop. Pixels travel raw: encoding them is the consumer's work, off both threads.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from services.runtime.errors import LimnerError
from services.upscale.model import UInt8Array


@dataclass(frozen=True, kw_only=True, slots=True)
class JobQueued:
    """The job waits; latest wins."""

    position: int
    """Requests ahead of it; 0 is next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TilesProgressed:
    """The job has come further; latest wins."""

    completed_tile_count: int
    total_tile_count: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BandFinished:
    """The next rows of the picture, from top to bottom; never dropped.

    The consumer calls `Batcher.band_consumed` when it has no more use for the pixels: a job with
    too many bands under way is not computed further.
    """

    pixels: UInt8Array
    """(h, W, C)."""


JobEvent: TypeAlias = JobQueued | TilesProgressed | BandFinished


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
