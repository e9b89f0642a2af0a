"""The tile batcher: one `tick` is one call of a network, with tiles of whatever pictures need it.

`DeviceWorker` repeats `tick` on the device thread; tests call it directly, for it is synchronous
and deterministic. The event loop only reserves, submits and withdraws. What runs next is the
scheduler's decision; here is the life of a job: arrive, start, tile by tile, end. A job whose
client left is gone at the next tick, so that the device is free of it within one batch.

It deliberately knows no protobuf, no image codec and no event loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from services.graphs.isolation import run_isolated
from services.runtime.errors import DeadlineExceededError, InternalError, LimnerError
from services.runtime.pace import Average, Pace
from services.upscale.batching.events import BandFinished, JobQueued
from services.upscale.batching.intake import BatcherLimits, Intake, Reservation
from services.upscale.batching.job import Job, JobState
from services.upscale.batching.scheduler import Scheduler, Tile
from services.upscale.metrics import UpscaleMetrics, UpscaleOutcome

_LOGGER = logging.getLogger(__name__)

_POSITIONS_INTERVAL_S = 0.25


class Batcher:
    """Runs the jobs of all models of one device.

    `reserve`, `submit`, `withdraw`, `band_consumed` and the counts are for any thread, all else for
    the device thread. `clock` counts seconds, as deadlines do.
    """

    def __init__(
        self,
        *,
        limits: BatcherLimits,
        metrics: UpscaleMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._intake = Intake(limits)
        self._scheduler = Scheduler(
            budget_of=lambda job: limits.max_batch_pixels or job.model.max_batch_pixels,
            claim=self._claim,
            max_started_jobs=limits.max_started_jobs,
            max_bands_under_way=limits.max_bands_under_way,
        )
        self._pace = Pace()
        self._pixel_s = Average()
        self._positions_due_at = 0.0

    @property
    def waiting_count(self) -> int:
        """Requests that wait for their first tile. Any thread."""
        return self._intake.waiting_count

    @property
    def running_count(self) -> int:
        """Requests that have started and not ended. Any thread."""
        return self._scheduler.started_count

    def reserve(self, pixel_count: int, *, queue_share: float = 1.0) -> Reservation:
        """Take a place for a picture of `pixel_count` output pixels before it is decoded.

        `queue_share` is how full the queue may be for it, see `RequestContext`. Raises
        QueueFullError with the time in which a place may be free, or the error given to `abort`.
        """
        retry_after_s = self._pace.retry_after_s(self._intake.held_pixels_per_request)
        return self._intake.reserve(
            pixel_count, retry_after_s=retry_after_s, queue_share=queue_share
        )

    def submit(self, job: Job) -> None:
        """Take a job in; wake the device thread afterwards. Raises the error given to `abort`."""
        job.queued_at = self._clock()
        self._intake.submit(job)

    def withdraw(self, job: Job) -> None:
        """Stop a job at the next tick; no-op once it ended. Wake the device thread afterwards."""
        self._intake.withdraw(job)

    def band_consumed(self, job: Job) -> None:
        """Say that a band's pixels are no longer used; wake the device thread afterwards."""
        self._intake.band_consumed(job)

    def tick(self) -> bool:
        """Do the work up to and including one call of a network; False when there is none left.

        Raises what ends the device: `torch.AcceleratorError`, or a defect of ours.
        """
        for job in self._intake.arrivals():
            self._scheduler.add(job)
        self._drop_departed()
        with torch.inference_mode():
            tiles = self._scheduler.choose(self._pixel_s.value or 0.0)
            if tiles:
                self._step(tiles)
        self._tell_positions()
        self._metrics.load(
            waiting_count=self._intake.waiting_count, running_count=self._scheduler.started_count
        )
        return self._scheduler.can_run()

    def abort(self, error: LimnerError) -> None:
        """End every job with `error` and refuse new ones; once the device thread has ended."""
        for job in [*self._intake.close(error), *self._scheduler.jobs]:
            self._end(job, "failed", error)

    def _drop_departed(self) -> None:
        now = self._clock()
        for job in self._scheduler.jobs:
            if job.withdrawn:
                self._end(job, "cancelled", None)
            elif job.expired(now):
                self._end(job, "expired", DeadlineExceededError())

    def _claim(self, job: Job) -> bool:
        if not self._intake.claim(job, job.reservation):
            return False  # withdrawn since this tick began; the next drops it
        job.started_at = self._clock()
        self._metrics.queued(job.started_at - job.queued_at)
        return True

    def _step(self, tiles: list[Tile]) -> None:
        started_at = self._clock()
        outcome = run_isolated(tiles, _enlarge)
        for computed, results in outcome.results:
            for tile, result in zip(computed, results, strict=True):
                self._deliver(tile, result)
        self._measure(tiles, self._clock() - started_at)
        for job in dict.fromkeys(tile.job for tile in tiles):
            if job.state is JobState.RUNNING:
                job.report_progress()
                if job.finished:
                    self._end(job, "finished", None)
        for tile, error in outcome.faults:
            self._fail(tile.job, error)

    def _measure(self, tiles: list[Tile], device_s: float) -> None:
        pixel_count = sum(tile.job.tile_pixel_count for tile in tiles)
        self._pixel_s.add(device_s / pixel_count)
        # Requests are measured by their output, of which a source pixel makes several.
        out_per_pixel = tiles[0].job.model.scale ** 2
        self._pace.measured(tick_s=device_s, slot_count=pixel_count * out_per_pixel)
        self._metrics.batch(tiles[0].job.model.name, device_s, len(tiles))
        self._scheduler.settle(tiles, device_s)

    def _deliver(self, tile: Tile, result_HWC: Tensor) -> None:
        job = tile.job
        # After a fault the tiles behind the faulty one are of no use.
        if tile.index != job.next_tile:
            return
        band = job.assembly.add(result_HWC)
        job.next_tile += 1
        if band is not None:
            self._intake.band_sent(job)
            job.sink.put(BandFinished(pixels=band))

    def _fail(self, job: Job, error: Exception) -> None:
        if job.state is not JobState.RUNNING:
            return  # another tile of the job failed first
        _LOGGER.error(
            "a request failed in the model",
            extra={"request_id": job.request_id, "model": job.model.name, "error": repr(error)},
        )
        self._end(job, "failed", InternalError("The model failed on this request."))

    def _end(self, job: Job, outcome: UpscaleOutcome, error: LimnerError | None) -> None:
        """Free everything that `job` holds on the device, and close its events."""
        self._scheduler.leave(job)
        job.state = JobState.GONE
        out_pixels = job.plan.rows.out_length * job.plan.columns.out_length
        self._metrics.image(job.model.name, outcome, out_pixels)
        job.sink.close(error)

    def _tell_positions(self) -> None:
        now = self._clock()
        if now < self._positions_due_at:
            return
        self._positions_due_at = now + _POSITIONS_INTERVAL_S
        for position, job in enumerate(self._scheduler.waiting_jobs()):
            if job.shown_position != position:
                job.shown_position = position
                job.sink.put_latest("queued", JobQueued(position=position))


def _enlarge(tiles: Sequence[Tile]) -> list[Tensor]:
    """Run one network over the layers of `tiles`; a picture's pixels (H, W, C) for each."""
    leader = tiles[0].job
    layers = [tile.job.source.layers(tile.job.plan, tile.index) for tile in tiles]
    larger = leader.model.enlarge(torch.cat(layers), leader.denoise_strength)
    counts = [tile.job.source.layer_count for tile in tiles]
    parts = torch.split(larger, counts)
    return [tile.job.source.joined(own) for tile, own in zip(tiles, parts, strict=True)]
