"""Prometheus metrics of the diffusion service.

Written by the batcher (device thread) and by `generation` (event loop); a registry is passed in.
Labels never hold an account or a prompt.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.storage.catalog import base_name

ImageOutcome = Literal["finished", "cancelled", "expired", "failed", "rejected"]
Stage = Literal["text", "denoise", "vae", "encode"]

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
_BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class DiffusionMetrics:
    """The service's series in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queue_depth = Gauge(
            "diffusion_queue_depth",
            "Requests that wait for their first model call.",
            registry=registry,
        )
        self._running = Gauge(
            "diffusion_running", "Pictures that have started and not finished.", registry=registry
        )
        self._queue_seconds = Histogram(
            "diffusion_queue_seconds",
            "Time from arrival to the first model call.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "diffusion_stage_seconds",
            "Time of a text encoding call, of a request's denoising, of a decoding call, of the "
            "encoding of a picture.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._step_seconds = Histogram(
            "diffusion_step_seconds",
            "Time of one denoiser call with everything that belongs to it.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_size = Histogram(
            "diffusion_batch_size",
            "Rows of a denoiser call; a guided picture has two.",
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self._images = Counter(
            "diffusion_images",
            "Pictures by how they ended.",
            ("model", "outcome"),
            registry=registry,
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

    def step(self, seconds: float, row_count: int) -> None:
        """Observe a denoiser call."""
        self._step_seconds.observe(seconds)
        self._batch_size.observe(row_count)

    def images(self, model: str, outcome: ImageOutcome, count: int) -> None:
        """Count pictures that ended; those of trained models count for their base."""
        self._images.labels(base_name(model), outcome).inc(count)
