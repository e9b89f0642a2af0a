"""Which tiles take part in the next call: the policy of the batcher, without any tensor.

*Accounts* share device time by start-time fair queueing, see `services.runtime.fair_share`; the
priority of a job is the weight of its seconds. *Within an account* jobs are ranked by priority,
then by a virtual deadline: the work done at arrival plus `STRETCH` times the job's own, in pixels.
Small pictures therefore overtake large ones at once, between two batches, and a large one is
overtaken only by what arrives within `STRETCH` times its own work: nothing waits for ever.
The job that comes first leads; tiles of its group fill the batch in the same order, its own next
tiles included, up to the budget in pixels.

Device thread only. The scheduler never touches tensors, sinks or clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.runtime.fair_share import FairShare
from services.upscale.batching.job import Job, JobState

STRETCH = 4.0
"""Pixels of patience for each pixel of a job."""

_LEAST_PIXEL_S = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A tile to compute now."""

    job: Job
    index: int


class Scheduler:
    """Keeps every job's place in line and picks the tiles of each batch."""

    def __init__(
        self,
        *,
        budget_of: Callable[[Job], int],
        claim: Callable[[Job], bool],
        max_started_jobs: int,
        max_bands_under_way: int,
    ) -> None:
        """`budget_of` a job is the size of its model's batches; `claim` lets a job start."""
        self._budget_of = budget_of
        self._claim = claim
        self._max_started_jobs = max_started_jobs
        self._max_bands_under_way = max_bands_under_way
        self._jobs: dict[Job, None] = {}
        self._share = FairShare()
        self._work_done = 0
        self._arrivals = 0
        self.started_count = 0
        """Jobs that have started and not left. Read from any thread."""

    def add(self, job: Job) -> None:
        """Put an arrived job in line."""
        self._arrivals += 1
        patience = STRETCH * job.pixel_count
        job.rank = (-job.priority, self._work_done + patience, self._arrivals)
        self._jobs[job] = None

    def leave(self, job: Job) -> None:
        """Take a job out; no-op for one that is out."""
        if job in self._jobs:
            del self._jobs[job]
            self.started_count -= job.state is JobState.RUNNING

    @property
    def jobs(self) -> list[Job]:
        """All jobs in line, started or not."""
        return list(self._jobs)

    def waiting_jobs(self) -> list[Job]:
        """Jobs that have not started, in about the order in which they will."""
        waiting = [job for job in self._jobs if job.state is JobState.WAITING]
        return sorted(waiting, key=lambda job: (self._share.time(job.account), job.rank))

    def choose(self, pixel_s: float) -> list[Tile]:
        """Pick the tiles of the next batch; empty when nothing can be computed now.

        `pixel_s` estimates the device seconds of a source pixel. Jobs that had not started are
        claimed by being picked.
        """
        runnable = self._runnable()
        times = {job.account: self._share.time(job.account) for job in runnable}
        chosen: list[Tile] = []
        counts: dict[Job, int] = {}
        free_pixels = 0
        while runnable:
            job = min(runnable, key=lambda job: (times[job.account], job.rank))
            fits = not chosen or job.tile_pixel_count <= free_pixels
            if not fits or not self._started(job):
                runnable.remove(job)
                continue
            if not chosen:
                free_pixels = self._budget_of(job)
                runnable = [other for other in runnable if other.group == job.group]
            count = counts.get(job, 0)
            chosen.append(Tile(job=job, index=job.next_tile + count))
            counts[job] = count + 1
            free_pixels -= job.tile_pixel_count
            times[job.account] += job.tile_pixel_count * max(pixel_s, _LEAST_PIXEL_S) / job.weight
            if job.next_tile + count + 1 == job.plan.tile_count:
                runnable.remove(job)
        return chosen

    def settle(self, tiles: Iterable[Tile], device_s: float) -> None:
        """Charge a batch's device seconds to the accounts of its tiles, by their pixels."""
        tiles = list(tiles)
        total = sum(tile.job.tile_pixel_count for tile in tiles)
        self._work_done += total
        taken: dict[str, int] = {}
        for tile in tiles:
            job = tile.job
            taken[job.account] = taken.get(job.account, 0) + 1
            seconds = max(device_s, _LEAST_PIXEL_S) * job.tile_pixel_count / total
            self._share.charge(job.account, seconds / job.weight)
        wanted: dict[str, int] = {}
        for job in self._jobs:
            left = job.plan.tile_count - job.next_tile
            wanted[job.account] = wanted.get(job.account, 0) + left
        hungry = {account for account, count in wanted.items() if count > taken.get(account, 0)}
        self._share.settle(hungry=hungry, present=wanted)

    def can_run(self) -> bool:
        """Whether a batch can be formed now."""
        return bool(self._runnable())

    def _runnable(self) -> list[Job]:
        may_start = self.started_count < self._max_started_jobs
        return [
            job
            for job in self._jobs
            if not job.finished
            and job.bands_under_way < self._max_bands_under_way
            and (job.state is JobState.RUNNING or may_start)
        ]

    def _started(self, job: Job) -> bool:
        """Whether the job runs, starting it if there is room for one more."""
        if job.state is JobState.RUNNING:
            return True
        if self.started_count >= self._max_started_jobs or not self._claim(job):
            return False
        self.started_count += 1
        return True
