"""A model in closed form, a clock that only models advance, and sinks that are lists.

`AnalyticModel` implements `LoadedModel`: elementwise arithmetic, so that rows cannot influence
each other, whatever the batch. Its denoiser is the exact one for Gaussian data around the constant
of the prompt, and its pictures hold the bits of the latent: equal pictures mean equal latents.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from services.diffusion.batching import (
    Batcher,
    BatcherLimits,
    ImageSpec,
    Job,
    JobEvent,
    JobProgressed,
    JobQueued,
    SampleFinished,
)
from services.diffusion.metrics import DiffusionMetrics
from services.diffusion.model import ImageDefaults, ImageLimits, Notice, UInt8Array, Vocabulary
from services.diffusion.samplers import SAMPLERS
from services.diffusion.schedule import NoiseSchedule
from services.runtime.errors import LimnerError

SCHEDULE = NoiseSchedule(
    alphas_cumprod=np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    timestep_spacing="trailing",
)
POWERS = torch.tensor(SCHEDULE.alphas_cumprod).float()
TOKEN_COUNT, TEXT_WIDTH = 3, 4


class ManualClock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class AnalyticModel:
    """See the module; `call_s` and `row_s` are what a denoiser call costs on the clock."""

    display_name = "Analytic"
    revision = "0123456789abcdef"
    description = "A closed form."
    family = "sd1"
    license = "Apache-2.0"
    schedule = SCHEDULE
    limits = ImageLimits(
        min_side=32,
        max_side=128,
        side_multiple=8,
        max_pixel_count=128 * 64,
        min_step_count=1,
        max_step_count=100,
        min_guidance_scale=0.0,
        max_guidance_scale=20.0,
        max_sample_count=8,
        max_prompt_length=100,
    )
    defaults = ImageDefaults(width=64, height=64, step_count=6, guidance_scale=3.0, sampler="ddim")
    samplers = tuple(SAMPLERS)
    vocabulary = Vocabulary(concepts=("red apple",), styles=("3d",), backgrounds=("blue",))
    device = "cpu"
    runtimes: ClassVar = {"denoiser": "torch-float32"}
    max_batch_rows = 16

    def __init__(
        self,
        name: str = "analytic",
        *,
        clock: ManualClock | None = None,
        call_s: float = 0.0,
        row_s: float = 0.0,
    ) -> None:
        self.name = name
        self.clock = clock
        self.call_s = call_s
        self.row_s = row_s
        self.calls: list[int] = []
        """Rows of every denoiser call."""
        self.encode_calls: list[list[str]] = []
        self.decode_calls: list[int] = []
        self.fault: Callable[[str, Tensor], None] = lambda stage, rows: None
        """Called with the stage and its input; may raise."""
        self.spread = 0.5
        """Standard deviation of the data that the denoiser is exact for."""
        self.poison: float | None = None
        """Rows conditioned on this value come out as NaN."""

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return 4, height // 8, width // 8

    def prompt_notices(self, prompt: str, *, field: str = "prompt") -> list[Notice]:
        if "xyzzy" not in prompt:
            return []
        return [Notice(code="UNKNOWN_WORDS", message="'xyzzy' is unknown.", field=field)]

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        self.encode_calls.append(list(prompts))
        values = torch.tensor([prompt_value(prompt) for prompt in prompts], device=self.device)
        self.fault("text", values)
        return values.view(-1, 1, 1).expand(-1, TOKEN_COUNT, TEXT_WIDTH).clone()

    def denoise(self, latents_BChw: Tensor, timesteps_B: Tensor, context_BLD: Tensor) -> Tensor:
        assert len(latents_BChw) == len(timesteps_B) == len(context_BLD)
        values = context_BLD[:, 0, 0]
        self.calls.append(len(latents_BChw))
        if self.clock:
            self.clock.advance(self.call_s + self.row_s * len(latents_BChw))
        self.fault("denoise", values)
        powers = POWERS.to(timesteps_B.device)[timesteps_B.round().long()]
        signal, noise = powers.sqrt(), (1.0 - powers).sqrt()
        # Posterior mean of x0 for data N(value, spread²), and the noise that goes with it.
        gain = signal * self.spread**2 / (signal**2 * self.spread**2 + noise**2)
        signal, noise, gain, values_B111 = (
            scale.view(-1, 1, 1, 1) for scale in (signal, noise, gain, values)
        )
        clean = values_B111 + gain * (latents_BChw - signal * values_B111)
        output = (latents_BChw - signal * clean) / noise
        if self.poison is not None:
            output[values == self.poison] = torch.nan
        return output

    def decode(self, latents_BChw: Tensor) -> UInt8Array:
        self.decode_calls.append(len(latents_BChw))
        self.fault("decode", latents_BChw)
        return _pixels(latents_BChw, scale=8)

    def preview(self, latents_BChw: Tensor) -> UInt8Array:
        self.fault("preview", latents_BChw)
        return _pixels(latents_BChw, scale=4)

    def warm_up(self) -> None:
        self.encode_prompts([""])
        self.encode_calls.clear()


def prompt_value(prompt: str) -> float:
    """What the denoiser draws for `prompt`, within −1 to 1."""
    return zlib.crc32(prompt.encode()) / 2**31 - 1.0


def _pixels(latents_BChw: Tensor, *, scale: int) -> UInt8Array:
    """Pictures (B, h × scale, w × scale, 3) that hold the bits of the latents."""
    row_count, channels, height, width = latents_BChw.shape
    bits = latents_BChw.permute(0, 2, 3, 1).contiguous().cpu().numpy().view(np.uint8)
    tiles = np.zeros((row_count, height, width, scale * scale * 3), dtype=np.uint8)
    tiles[..., : channels * 4] = bits
    tiles = tiles.reshape(row_count, height, width, scale, scale, 3).swapaxes(2, 3)
    return tiles.reshape(row_count, height * scale, width * scale, 3)


def latent_of(picture: UInt8Array, *, scale: int = 8) -> npt.NDArray[np.float32]:
    """The latent (h, w, C) that `picture` was made of."""
    height, width, _ = picture.shape
    tiles = picture.reshape(height // scale, scale, width // scale, scale, 3).swapaxes(1, 2)
    bits = tiles.reshape(height // scale, width // scale, -1)[..., :16]
    return np.ascontiguousarray(bits).view(np.float32)


@dataclass
class ListSink:
    """Everything that was said about a job."""

    events: list[JobEvent] = field(default_factory=list)
    closed: bool = False
    error: LimnerError | None = None

    def put_latest(self, key: Hashable, event: JobEvent) -> None:
        self.put(event)

    def put(self, event: JobEvent) -> None:
        assert not self.closed, "an event after the end"
        self.events.append(event)

    def close(self, error: LimnerError | None = None) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
        self.error = error

    @property
    def pictures(self) -> dict[int, UInt8Array]:
        return {e.index: e.pixels for e in self.events if isinstance(e, SampleFinished)}

    @property
    def progress(self) -> list[int]:
        return [e.completed_step_count for e in self.events if isinstance(e, JobProgressed)]

    @property
    def positions(self) -> list[int]:
        return [e.position for e in self.events if isinstance(e, JobQueued)]


def make_spec(**changes: object) -> ImageSpec:
    values: dict[str, object] = {
        "prompt": "a red apple",
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "step_count": 6,
        "guidance_scale": 3.0,
        "seed": 1,
        "sampler": "ddim",
        "sample_count": 1,
        "preview_interval": 0,
    }
    return ImageSpec(**(values | changes))  # type: ignore[arg-type]


class Harness:
    """A batcher with a model in closed form, driven by hand."""

    def __init__(
        self,
        *,
        max_batch_rows: int = 8,
        max_queued_requests: int = 1000,
        max_decode_rows: int = 4,
        call_s: float = 0.0,
        row_s: float = 0.01,
    ) -> None:
        self.clock = ManualClock()
        self.model = AnalyticModel(clock=self.clock, call_s=call_s, row_s=row_s)
        self.registry = CollectorRegistry()
        self.batcher = Batcher(
            limits=BatcherLimits(
                max_batch_rows=max_batch_rows,
                max_queued_requests=max_queued_requests,
                max_decode_rows=max_decode_rows,
            ),
            metrics=DiffusionMetrics(self.registry),
            clock=self.clock,
        )
        self.ticks = 0
        self.jobs: list[Job] = []
        """All that were accepted."""

    def job(
        self,
        *,
        model: AnalyticModel | None = None,
        account: str = "",
        priority: int = 0,
        queue_share: float = 1.0,
        deadline: float | None = None,
        **spec: object,
    ) -> Job:
        return Job(
            model=model or self.model,
            spec=make_spec(**spec),
            sink=ListSink(),
            account=account,
            priority=priority,
            queue_share=queue_share,
            deadline=deadline,
        )

    def submit(self, **options: object) -> Job:
        job = self.job(**options)  # type: ignore[arg-type]
        self.batcher.submit(job)
        self.jobs.append(job)
        return job

    def finished(self, account: str) -> int:
        """Jobs of `account` that ended well."""
        jobs = [job for job in self.jobs if job.account == account]
        return sum(sink_of(job).closed and sink_of(job).error is None for job in jobs)

    def tick(self, count: int = 1) -> bool:
        busy = False
        for _ in range(count):
            busy = self.batcher.tick()
            self.ticks += 1
        return busy

    def run(self, *, limit: int = 5000) -> int:
        """Tick until nothing is left; returns how many ticks that took."""
        for count in range(1, limit + 1):
            if not self.tick():
                return count
        raise AssertionError(f"still busy after {limit} ticks")

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def sink_of(job: Job) -> ListSink:
    assert isinstance(job.sink, ListSink)
    return job.sink
