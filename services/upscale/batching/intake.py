"""Where the event loop and the device thread meet: requests reserve, arrive, leave early.

Owned by the batcher. The only state that two threads share, behind one lock that is never held
during computation. A place is reserved before a picture is decoded: a refusal costs neither memory
nor device work, and what all requests hold together is bounded.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from services.runtime.errors import LimnerError, QueueFullError
from services.upscale.batching.job import Job, JobState


@dataclass(frozen=True, kw_only=True, slots=True)
class BatcherLimits:
    """What the batcher may take on; comes from the settings of the process."""

    max_queued_requests: int = 64
    """Requests that may wait for their first tile."""
    max_held_pixels: int = 400_000_000
    """Output pixels of all requests together, from their arrival to their end."""
    max_started_jobs: int = 16
    """Pictures of which a band is held."""
    max_bands_under_way: int = 2
    """Finished bands of a picture that may wait for their encoder."""
    max_batch_pixels: int | None = None
    """Source pixels of a batch; None: what each model advises."""

    def __post_init__(self) -> None:
        counts = (self.max_queued_requests, self.max_held_pixels, self.max_started_jobs)
        if min(*counts, self.max_bands_under_way, self.max_batch_pixels or 1) < 1:
            raise ValueError("limits of the batcher must be at least 1")


class Reservation:
    """A request's place, from before its picture is decoded until it ends; a context manager."""

    def __init__(self, intake: Intake, pixel_count: int) -> None:
        self._intake = intake
        self.pixel_count = pixel_count
        self.waiting = True
        self.closed = False

    def close(self) -> None:
        """Give the place back; no-op the second time. Any thread."""
        self._intake.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Intake:
    """Bounded counts of what waits and what is held, and the arrivals that nobody has sorted."""

    def __init__(self, limits: BatcherLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._arrivals: deque[Job] = deque()
        self._waiting_count = 0
        self._held_pixels = 0
        self._held_count = 0
        self._closed_by: LimnerError | None = None

    @property
    def waiting_count(self) -> int:
        """Requests that wait for their first tile. Any thread."""
        return self._waiting_count

    @property
    def held_pixels_per_request(self) -> float:
        """Output pixels of the mean request; 0 when there is none. Any thread."""
        with self._lock:
            return self._held_pixels / max(1, self._held_count)

    def reserve(
        self, pixel_count: int, *, retry_after_s: float, queue_share: float = 1.0
    ) -> Reservation:
        """Take a place for a picture of `pixel_count` output pixels. Any thread.

        Raises QueueFullError, or the error that closed the intake. It is full for a request as soon
        as its share, above 0 and up to 1, of places or pixels is taken, by whomever: what is left
        is for larger shares. A picture that is larger than all that may be held gets a place when
        there is nothing else.
        """
        with self._lock:
            if self._closed_by is not None:
                raise self._closed_by
            limits = self._limits
            too_many = self._waiting_count >= limits.max_queued_requests * queue_share
            too_much = self._held_pixels + pixel_count > limits.max_held_pixels * queue_share
            if too_many or (too_much and self._held_count):
                raise QueueFullError(retry_after_s)
            self._waiting_count += 1
            self._held_count += 1
            self._held_pixels += pixel_count
            return Reservation(self, pixel_count)

    def release(self, reservation: Reservation) -> None:
        """Give a place back; no-op the second time."""
        with self._lock:
            if reservation.closed:
                return
            reservation.closed = True
            self._held_count -= 1
            self._held_pixels -= reservation.pixel_count
            self._leave_line(reservation)

    def submit(self, job: Job) -> None:
        """Hand a job over; raises the error that closed the intake. Any thread."""
        with self._lock:
            if self._closed_by is not None:
                raise self._closed_by
            self._arrivals.append(job)

    def withdraw(self, job: Job) -> None:
        """Mark `job` as unwanted. Any thread."""
        with self._lock:
            job.withdrawn = True

    def claim(self, job: Job, reservation: Reservation) -> bool:
        """Move a waiting job on to running; False if it was withdrawn. Device thread."""
        with self._lock:
            if job.withdrawn:
                return False
            job.state = JobState.RUNNING
            self._leave_line(reservation)
            return True

    def band_sent(self, job: Job) -> None:
        """Count a band that is on its way to the encoder. Device thread."""
        with self._lock:
            job.bands_under_way += 1

    def band_consumed(self, job: Job) -> None:
        """Count a band that the encoder has taken. Any thread."""
        with self._lock:
            job.bands_under_way -= 1

    def arrivals(self) -> list[Job]:
        """Hand over the jobs that arrived since the last call. Device thread."""
        with self._lock:
            arrived = list(self._arrivals)
            self._arrivals.clear()
            return arrived

    def close(self, error: LimnerError) -> list[Job]:
        """Refuse further requests with `error`; returns the arrivals that nobody has sorted."""
        with self._lock:
            self._closed_by = error
            arrived = list(self._arrivals)
            self._arrivals.clear()
            return arrived

    def _leave_line(self, reservation: Reservation) -> None:
        if reservation.waiting:
            reservation.waiting = False
            self._waiting_count -= 1
