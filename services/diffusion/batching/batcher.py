"""The in-flight batcher: one `tick` is one denoiser call, and rows join and leave at every tick.

`DeviceWorker` repeats `tick` on the device thread; tests call it directly, for it is synchronous
and deterministic. The event loop only submits and withdraws. What runs next is the scheduler's
decision, how it is computed is the group's; here is the life of a job: arrive, start (its prompts
are encoded), step, decode, end. At most one bounded decoding call comes between two denoiser
calls, so that finished pictures hold the others up as little as possible.

It deliberately knows no protobuf, no image codec and no event loop.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from services.diffusion.batching.conditioning import encode_jobs
from services.diffusion.batching.decoding import DecodeQueue, decode
from services.diffusion.batching.events import JobQueued, SampleFinished
from services.diffusion.batching.group import Group
from services.diffusion.batching.intake import Intake
from services.diffusion.batching.job import GroupKey, Job, JobState, Row
from services.diffusion.batching.limits import BatcherLimits
from services.diffusion.batching.scheduler import Scheduler
from services.diffusion.metrics import DiffusionMetrics, ImageOutcome
from services.diffusion.model import UInt8Array
from services.graphs.isolation import run_isolated
from services.runtime.errors import DeadlineExceededError, InternalError, LimnerError
from services.runtime.pace import Pace

_LOGGER = logging.getLogger(__name__)

# Telling n waiting jobs their positions costs O(n log n): not at every tick.
_POSITIONS_INTERVAL_S = 0.25


class Batcher:
    """Runs the jobs of all models of one device.

    `submit`, `withdraw` and the counts are for any thread, all else for the device thread.
    `clock` counts seconds, as deadlines do.
    """

    def __init__(
        self,
        *,
        limits: BatcherLimits,
        metrics: DiffusionMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._intake = Intake(limits.max_queued_requests)
        self._scheduler = Scheduler(slots_of=self._slots_of, claim=self._claim)
        self._pace = Pace()
        self._groups: dict[GroupKey, Group] = {}
        self._running: dict[Job, None] = {}
        self._undecoded = DecodeQueue(limits.max_decode_rows)
        self._waiting_expires_at = math.inf
        self._positions_due_at = -math.inf

    @property
    def waiting_count(self) -> int:
        """Requests that wait for their first model call. Any thread."""
        return self._intake.waiting_count

    @property
    def running_count(self) -> int:
        """Requests that have started and not ended. Any thread."""
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Take a job in; wake the device thread afterwards. Any thread.

        Raises QueueFullError with the time in which a place will be free at the measured speed,
        or the error given to `abort`.
        """
        job.queued_at = self._clock()
        retry_after_s = self._pace.retry_after_s(self._intake.work_per_job)
        try:
            self._intake.submit(job, retry_after_s=retry_after_s)
        except LimnerError:
            self._metrics.images(job.model.name, "rejected", job.spec.sample_count)
            raise

    def withdraw(self, job: Job) -> None:
        """Stop a job: at once if it waits, else at the next tick. No-op once it ended. Any thread.

        Wake the device thread afterwards.
        """
        self._intake.withdraw(job)

    def tick(self) -> bool:
        """Do the work up to and including one denoiser call; False when there is none left.

        Raises what ends the device: `torch.AcceleratorError`, or a defect of ours.
        """
        with torch.inference_mode():
            now = self._clock()
            self._take_arrivals(now)
            self._drop_departed(now)
            rows = self._start(self._scheduler.choose(self._slot_s))
            if rows:
                self._step(rows)
            self._decode()
        self._tell_positions()
        self._metrics.load(
            waiting_count=self._intake.waiting_count,
            running_count=self._scheduler.started_count + len(self._undecoded),
        )
        return bool(self._running) or self._intake.waiting_count > 0

    def abort(self, error: LimnerError) -> None:
        """End every job with `error` and refuse new ones; once the device thread has ended."""
        waiting = self._intake.close(error) + self._scheduler.drop_waiting(lambda _: True)
        # The device may be lost: tensors are dropped, not touched.
        self._groups.clear()
        for job in [*waiting, *self._running]:
            self._intake.expire(job)
            for row in job.rows:
                if row.scheduled:
                    self._scheduler.leave(row)
            self._undecoded.drop(job)
            self._metrics.images(job.model.name, "failed", job.unfinished_count)
            job.end()
            job.sink.close(error)
        self._running.clear()

    def _take_arrivals(self, now: float) -> None:
        for job in self._intake.arrivals():
            if job.withdrawn:
                self._drop(job)
                continue
            ticks_left = math.inf
            if job.deadline is not None:
                ticks_left = self._pace.ticks_in(job.deadline - now)
                self._waiting_expires_at = min(self._waiting_expires_at, job.deadline)
            self._scheduler.add(job, ticks_left=ticks_left)

    def _drop_departed(self, now: float) -> None:
        for job in list(self._running):
            if job.withdrawn or job.expired(now):
                self._drop(job)
        if not (self._intake.take_departed() or now >= self._waiting_expires_at):
            return
        for job in self._scheduler.drop_waiting(lambda job: job.withdrawn or job.expired(now)):
            self._intake.expire(job)
            self._drop(job)
        deadlines = [job.deadline for job in self._scheduler.waiting_jobs()]
        self._waiting_expires_at = min((d for d in deadlines if d is not None), default=math.inf)

    def _drop(self, job: Job) -> None:
        if job.withdrawn:
            self._end(job, "cancelled", None)
        else:
            self._end(job, "expired", DeadlineExceededError())

    def _slots_of(self, job: Job) -> int:
        return self._limits.max_batch_rows or max(2, job.model.max_batch_rows)

    def _slot_s(self, key: GroupKey) -> float:
        group = self._groups.get(key)
        return (group.slot_s.value or 0.0) if group else 0.0

    def _claim(self, job: Job) -> bool:
        if self._intake.claim(job):
            self._running[job] = None
            return True
        self._drop(job)  # withdrawn since this tick began
        return False

    def _start(self, rows: list[Row]) -> list[Row]:
        """Give the new jobs among the chosen rows conditioning and first latents."""
        new = list(dict.fromkeys(row.job for row in rows if row.place < 0))
        if not new:
            return rows
        started_at = self._clock()
        outcome = run_isolated(new, encode_jobs)
        for jobs, contexts in outcome.results:
            for job, context in zip(jobs, contexts, strict=True):
                self._join(job, context, started_at)
        self._metrics.stage("text", self._clock() - started_at)
        for job, error in outcome.faults:
            self._fail(job, error)
        return [row for row in rows if row.job.state is JobState.RUNNING]

    def _join(self, job: Job, context_2LD: Tensor, started_at: float) -> None:
        group = self._groups.get(job.group)
        if group is None:
            group = self._groups[job.group] = Group(job, context_2LD)
        group.join(job, context_2LD)
        job.started_at = started_at
        self._metrics.queued(started_at - job.queued_at)

    def _step(self, rows: list[Row]) -> None:
        group = self._groups[rows[0].job.group]
        started_at = self._clock()
        stepped = group.step(rows)
        self._measure(group, rows, self._clock() - started_at)
        for row in stepped.rows:
            if row.finished:
                self._finish(group, row)
        now = self._clock()
        for row in stepped.rows:
            row.job.report_progress(now)
        for row, error in stepped.faults:
            self._fail(row.job, error)

    def _measure(self, group: Group, rows: list[Row], device_s: float) -> None:
        slot_count = sum(row.slot_count for row in rows)
        group.slot_s.add(device_s / slot_count)
        self._pace.measured(tick_s=device_s, slot_count=slot_count)
        self._metrics.step(device_s, slot_count)
        self._scheduler.settle(rows, device_s)

    def _finish(self, group: Group, row: Row) -> None:
        self._undecoded.add(row, group.latent(row))
        self._leave(row)
        if not any(other.scheduled for other in row.job.rows):
            self._metrics.stage("denoise", self._clock() - row.job.started_at)

    def _decode(self) -> None:
        batch = self._undecoded.take()
        if not batch:
            return
        started_at = self._clock()
        outcome = run_isolated(batch, decode)
        self._metrics.stage("vae", self._clock() - started_at)
        for finished, pictures in outcome.results:
            for (row, _), pixels in zip(finished, pictures, strict=True):
                self._deliver(row, pixels)
        for (row, _), error in outcome.faults:
            self._fail(row.job, error)

    def _deliver(self, row: Row, pixels: UInt8Array) -> None:
        job = row.job
        job.sink.put(SampleFinished(index=row.index, seed=row.seed, pixels=pixels))
        job.unfinished_count -= 1
        self._metrics.images(job.model.name, "finished", 1)
        if job.unfinished_count == 0:
            self._end(job, "finished", None)

    def _fail(self, job: Job, error: Exception) -> None:
        if job.state is not JobState.RUNNING:
            return  # another row of the job failed first
        _LOGGER.error(
            "a request failed in the model",
            extra={"request_id": job.request_id, "model": job.model.name, "error": repr(error)},
        )
        self._end(job, "failed", InternalError("The model failed on this request."))

    def _end(self, job: Job, outcome: ImageOutcome, error: LimnerError | None) -> None:
        """Free everything that `job` holds, and close its events."""
        self._running.pop(job, None)
        for row in job.rows:
            self._leave(row)
        self._undecoded.drop(job)
        self._metrics.images(job.model.name, outcome, job.unfinished_count)
        job.end()
        job.sink.close(error)

    def _leave(self, row: Row) -> None:
        """Take `row` out of the running ones; no-op for one that is out."""
        if not row.scheduled:
            return
        self._scheduler.leave(row)
        if row.place < 0:
            return  # its prompt was never encoded
        group = self._groups[row.job.group]
        group.leave(row)
        if not group:
            del self._groups[row.job.group]

    def _tell_positions(self) -> None:
        now = self._clock()
        if self._scheduler.waiting_count == 0 or now < self._positions_due_at:
            return
        self._positions_due_at = now + _POSITIONS_INTERVAL_S
        for position, job in enumerate(self._scheduler.waiting_jobs()):
            if job.shown_position != position:
                job.shown_position = position
                job.sink.put_latest("queued", JobQueued(position=position))
