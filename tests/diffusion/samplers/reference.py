"""The same sampling run twice: with diffusers' schedulers, and with Limner's tables.

Read by the sampler tests. The model is a rational function of the state and the timestep, so that
every one of its operations is correctly rounded: its output does not depend on the batch either.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import diffusers
import torch
from torch import Tensor

from services.diffusion.noise import NoiseStream
from services.diffusion.samplers import Trajectory, advance, collate, scale_input

SHAPE = (4, 5, 3)
TRAINING: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}
CLASSES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_karras": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
}

Model = Callable[[Tensor, Tensor], Tensor]


def rational_model(x_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
    """A nonlinear prediction that mixes channels and heeds the timestep; bounded by 1/2 in size."""
    mixed = x_BCHW + 0.5 * x_BCHW.roll(1, dims=1) - timesteps_B.view(-1, 1, 1, 1) * 0.001
    return mixed / (1.0 + mixed * mixed)


def diffusers_scheduler(name: str, config: dict[str, Any]) -> Any:
    """The reference scheduler of sampler `name`, built as `from_config` would build it."""
    cls = _sde_class() if name == "dpmpp_sde" else getattr(diffusers, CLASSES[name])
    extra = {"use_karras_sigmas": True} if name == "dpmpp_2m_karras" else {}
    return cls.from_config({**config, **extra})


@cache
def _sde_class() -> Any:
    if importlib.util.find_spec("torchsde") is None:
        # Imported by the scheduler's module, but only for the noise that the tests inject.
        sys.modules["torchsde"] = ModuleType("torchsde")
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    return module.DPMSolverSDEScheduler


class BrownianSteps:
    """A noise sampler for `DPMSolverSDEScheduler` over one stream of independent draws.

    It is asked for the increments from `start` to the middle and from `start` to the end.
    """

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self._draw = draw
        self._first: tuple[float, float, Tensor] | None = None

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        start, end = float(sigma), float(sigma_next)
        draw = self._draw()
        if self._first is None:
            self._first = (start, end, draw)
            return draw
        first_start, middle, first = self._first
        self._first = None
        assert first_start == start
        increments = math.sqrt(start - middle) * first + math.sqrt(middle - end) * draw
        return increments / math.sqrt(start - end)


def run_diffusers(
    scheduler: Any,
    timesteps: Tensor,
    x: Tensor,
    generator: torch.Generator,
    model: Model = rational_model,
) -> list[Tensor]:
    """States (1, C, H, W) after every call of the pipeline's loop over `timesteps`."""
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = BrownianSteps(lambda: torch.randn(x.shape, generator=generator))
    draws = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    states = []
    for timestep in timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        output = model(scaled, timestep.float().view(1))
        x = scheduler.step(output, timestep, x, **draws).prev_sample
        states.append(x)
    return states


def run_tables(
    trajectory: Trajectory, x: Tensor, draw: Callable[[], Tensor], model: Model = rational_model
) -> list[Tensor]:
    """States (B, C, H, W) after every call; all rows follow `trajectory`."""
    return list(_states(trajectory, x, draw, model))


def _states(
    trajectory: Trajectory, x: Tensor, draw: Callable[[], Tensor], model: Model
) -> Iterator[Tensor]:
    memory = torch.zeros_like(x)
    for call in range(trajectory.call_count):
        batch = collate([(trajectory, call)] * len(x))
        output = model(scale_input(x, batch), batch.timesteps_B)
        noise = draw() if trajectory.needs_noise[call] else None
        x, memory = advance(x, memory, output, noise, batch)
        yield x


def row_of(seed: int) -> tuple[Tensor, Callable[[], Tensor]]:
    """Unit noise (1, C, H, W) of a seed, and the draws that follow it."""
    stream = NoiseStream(seed, SHAPE)
    return stream.draw()[None], lambda: stream.draw()[None]


def largest_errors(states: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Largest difference of every state, relative to the largest element of that state."""
    return [
        float((ours - theirs).abs().max() / theirs.abs().max())
        for ours, theirs in zip(states, expected, strict=True)
    ]
