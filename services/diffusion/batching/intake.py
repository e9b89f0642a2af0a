"""Where the event loop and the device thread meet: jobs come in, leave early, or find it full.

Owned by the batcher. The only state that two threads share, behind one lock that is never held
during computation: a refusal costs no device work, and a waiting job that is withdrawn frees
its place at once, even while a long model call runs.
"""

from __future__ import annotations

import threading
from collections import deque

from services.diffusion.batching.job import Job, JobState
from services.runtime.errors import LimnerError, QueueFullError


class Intake:
    """A bounded count of waiting jobs and the arrivals among them that nobody has sorted yet."""

    def __init__(self, max_queued_requests: int) -> None:
        self._max_queued_requests = max_queued_requests
        self._lock = threading.Lock()
        self._arrivals: deque[Job] = deque()
        self._waiting_count = 0
        self._waiting_work = 0
        self._departed = False
        self._closed_by: LimnerError | None = None

    @property
    def waiting_count(self) -> int:
        """Jobs that wait for their first model call. Any thread."""
        return self._waiting_count

    @property
    def work_per_job(self) -> float:
        """Slots times calls of the mean waiting job; 0 when none waits. Any thread."""
        with self._lock:
            return self._waiting_work / max(1, self._waiting_count)

    def submit(self, job: Job, *, retry_after_s: float) -> None:
        """Take a job in; raises QueueFullError, or the error that closed the intake. Any thread.

        The queue is full for a job as soon as its share of the places is taken, by whomever: what
        is left of them is for jobs of a larger share.
        """
        with self._lock:
            if self._closed_by is not None:
                raise self._closed_by
            if self._waiting_count >= self._max_queued_requests * job.queue_share:
                raise QueueFullError(retry_after_s)
            self._count(job, 1)
            self._arrivals.append(job)

    def withdraw(self, job: Job) -> None:
        """Mark `job` as unwanted; if it waits, its place is free from here on. Any thread."""
        with self._lock:
            if job.state is JobState.GONE:
                return
            job.withdrawn = True
            self._departed = True
            self._release(job, JobState.GONE)

    def claim(self, job: Job) -> bool:
        """Move a waiting job on to running; False if it was withdrawn. Device thread."""
        with self._lock:
            return self._release(job, JobState.RUNNING)

    def expire(self, job: Job) -> None:
        """Take a waiting job out of the count. Device thread."""
        with self._lock:
            self._release(job, JobState.GONE)

    def arrivals(self) -> list[Job]:
        """Hand over the jobs that arrived since the last call, withdrawn or not. Device thread."""
        with self._lock:
            arrived = list(self._arrivals)
            self._arrivals.clear()
            return arrived

    def take_departed(self) -> bool:
        """Whether a job was withdrawn since the last call. Device thread."""
        with self._lock:
            departed, self._departed = self._departed, False
            return departed

    def close(self, error: LimnerError) -> list[Job]:
        """Refuse further jobs with `error`; returns the arrivals that nobody has sorted."""
        with self._lock:
            self._closed_by = error
            arrived = list(self._arrivals)
            self._arrivals.clear()
            return arrived

    def _release(self, job: Job, state: JobState) -> bool:
        if job.state is not JobState.WAITING:
            return False
        job.state = state
        self._count(job, -1)
        return True

    def _count(self, job: Job, sign: int) -> None:
        self._waiting_count += sign
        self._waiting_work += sign * job.work
