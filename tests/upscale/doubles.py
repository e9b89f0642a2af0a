"""Upscalers in closed form, and pictures to try them on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from services.runtime.errors import LimnerError
from services.upscale.batching import (
    BandFinished,
    Batcher,
    BatcherLimits,
    Job,
    JobEvent,
    TilesProgressed,
    plan_tiles,
)
from services.upscale.batching.source import Source
from services.upscale.metrics import UpscaleMetrics
from services.upscale.model import Tiling, UInt8Array

SMALL_TILING = Tiling(max_side=64, padding=8, feather=4, side_step=16)


class NearestUpscaler:
    """Repeats every pixel: what a network without any idea would do."""

    display_name = "Nearest"
    revision = "0123456789abcdef"
    description = ""
    family = "none"
    license = "Apache-2.0"
    picture_kinds = ("photo",)
    device = "cpu"
    runtimes = {"upscaler": "closed-form"}  # noqa: RUF012 -- a constant of the double

    def __init__(
        self,
        name: str = "nearest",
        *,
        scale: int = 4,
        tiling: Tiling = SMALL_TILING,
        max_batch_pixels: int = 64 * 64,
        default_denoise_strength: float | None = None,
    ) -> None:
        self.name = name
        self.scale = scale
        self.tiling = tiling
        self.max_batch_pixels = max_batch_pixels
        self.default_denoise_strength = default_denoise_strength
        self.calls: list[tuple[int, ...]] = []
        self.strengths: list[float | None] = []
        self.fault: Callable[[Tensor], None] = lambda tiles: None

    def enlarge(self, tiles_B3hw: Tensor, denoise_strength: float | None) -> Tensor:
        self.calls.append(tuple(tiles_B3hw.shape))
        self.strengths.append(denoise_strength)
        self.fault(tiles_B3hw)
        return levels(torch.nn.functional.interpolate(tiles_B3hw, scale_factor=self.scale))

    def prepare(self, denoise_strength: float | None) -> None:
        pass

    def warm_up(self) -> None:
        pass


def levels(larger_B3HW: Tensor) -> Tensor:
    """Finished pixels (B, H, W, 3) of results in 0 to 1."""
    rounded = (larger_B3HW.clamp(0.0, 1.0) * 255.0).round()
    return rounded.permute(0, 2, 3, 1).to(torch.uint8)


class ListSink:
    """Keeps what the batcher says."""

    def __init__(self) -> None:
        self.events: list[JobEvent] = []
        self.closed = False
        self.error: LimnerError | None = None

    def put_latest(self, key: object, event: JobEvent) -> None:
        self.events.append(event)

    def put(self, event: JobEvent) -> None:
        self.events.append(event)

    def close(self, error: LimnerError | None = None) -> None:
        assert not self.closed
        self.closed, self.error = True, error

    @property
    def bands(self) -> list[UInt8Array]:
        return [event.pixels for event in self.events if isinstance(event, BandFinished)]

    @property
    def picture(self) -> UInt8Array:
        return np.concatenate(self.bands)

    @property
    def completed_tile_count(self) -> int:
        counts = [e.completed_tile_count for e in self.events if isinstance(e, TilesProgressed)]
        return counts[-1] if counts else 0


def new_batcher(
    registry: object, *, clock: Callable[[], float] = lambda: 0.0, **limits: int
) -> Batcher:
    metrics = UpscaleMetrics(registry)  # type: ignore[arg-type]
    return Batcher(limits=BatcherLimits(**limits), metrics=metrics, clock=clock)


def submit(
    batcher: Batcher,
    model: NearestUpscaler,
    pixels: UInt8Array,
    *,
    scale: float | None = None,
    denoise_strength: float | None = None,
    **context: object,
) -> tuple[Job, ListSink]:
    """Hand a picture to a batcher as the service does."""
    height, width = pixels.shape[:2]
    factor = scale or model.scale
    out_height, out_width = round(height * factor), round(width * factor)
    sink = ListSink()
    job = Job(
        model=model,
        denoise_strength=denoise_strength,
        source=Source(pixels),
        plan=plan_tiles(
            width=width,
            height=height,
            out_width=out_width,
            out_height=out_height,
            tiling=model.tiling,
        ),
        sink=sink,
        reservation=batcher.reserve(out_width * out_height),
        **context,  # type: ignore[arg-type]
    )
    batcher.submit(job)
    return job, sink


def run(batcher: Batcher, *jobs: Job) -> None:
    """Tick until there is nothing to do; every band is taken by an encoder at once."""
    busy = True
    while busy:
        busy = batcher.tick()
        for job in jobs:
            while job.bands_under_way:
                batcher.band_consumed(job)
                busy = True


def noise(height: int, width: int, channel_count: int = 3, seed: int = 0) -> UInt8Array:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, channel_count), dtype=np.uint8)


def repeated(pixels: UInt8Array, scale: int) -> UInt8Array:
    """What `NearestUpscaler` makes of a picture."""
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)
