"""Prometheus metrics of the upscale service.

Written by the batcher (device thread) and by `upscaling` (event loop); a registry is passed in.
Labels never hold an account.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

UpscaleOutcome = Literal["finished", "cancelled", "expired", "failed", "rejected"]
Stage = Literal["decode", "encode"]

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
_BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


class UpscaleMetrics:
    """The service's series in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queue_depth = Gauge(
            "upscale_queue_depth", "Requests that wait for their first tile.", registry=registry
        )
        self._running = Gauge(
            "upscale_running", "Pictures that have started and not finished.", registry=registry
        )
        self._queue_seconds = Histogram(
            "upscale_queue_seconds",
            "Time from arrival to the first tile.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "upscale_stage_seconds",
            "Time of decoding a picture, and of encoding one over all its bands.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "upscale_batch_seconds",
            "Time of one call of a network with everything that belongs to it.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_size = Histogram(
            "upscale_batch_size", "Tiles of a call.", buckets=_BATCH_SIZES, registry=registry
        )
        self._tiles = Counter("upscale_tiles", "Tiles computed.", ("model",), registry=registry)
        self._megapixels = Counter(
            "upscale_megapixels",
            "Megapixels of finished pictures.",
            ("model",),
            registry=registry,
        )
        self._images = Counter(
            "upscale_images", "Pictures by how they ended.", ("model", "outcome"), registry=registry
        )

    def load(self, *, waiting_count: int, running_count: int) -> None:
        """Say how much is waiting and running now."""
        self._queue_depth.set(waiting_count)
        self._running.set(running_count)

    def queued(self, seconds: float) -> None:
        """Observe how long a request waited."""
        self._queue_seconds.observe(seconds)

    def stage(self, stage: Stage, seconds: float) -> None:
        """Observe the time of a stage."""
        self._stage_seconds.labels(stage).observe(seconds)

    def batch(self, model: str, seconds: float, tile_count: int) -> None:
        """Observe a call of a network."""
        self._batch_seconds.observe(seconds)
        self._batch_size.observe(tile_count)
        self._tiles.labels(model).inc(tile_count)

    def image(self, model: str, outcome: UpscaleOutcome, pixel_count: int) -> None:
        """Count a picture that ended; `pixel_count` is that of the output."""
        self._images.labels(model, outcome).inc()
        if outcome == "finished":
            self._megapixels.labels(model).inc(pixel_count / 1e6)
