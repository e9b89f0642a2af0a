"""Latent consistency sampling: Luo et al. 2023, algorithm 3.

Reference: diffusers' `LCMScheduler` with its default 50 original steps. Guidance is the caller's:
models without an embedding of the guidance scale take ordinary classifier-free guidance.
"""

from __future__ import annotations

import math

import numpy as np

from services.diffusion.samplers.ddim import level_at
from services.diffusion.samplers.trajectory import (
    Call,
    NoiseLevel,
    Trajectory,
    Weights,
    compile_trajectory,
)
from services.diffusion.schedule import NoiseSchedule

ORIGINAL_STEP_COUNT = 50
"""Steps of the grid on which consistency models are distilled."""

_SIGMA_DATA = 0.5
_TIMESTEP_SCALING = 10.0
_CLEAN = NoiseLevel(signal=1.0, noise=0.0)


def lcm(schedule: NoiseSchedule, step_count: int, *, first_step: int = 0) -> Trajectory:
    """Compile LCM; fresh noise in every step but the last. The timestep spacing has no say.

    Raises `ValueError` for a schedule with fewer training steps than the distillation grid.
    """
    timesteps = _timesteps(schedule, step_count)[first_step:]
    levels = [*(level_at(schedule, timestep) for timestep in timesteps), _CLEAN]
    calls = [
        Call(
            timestep=float(timestep),
            level=levels[i],
            step=i + 1,
            state=_weights(timestep, levels[i + 1]),
        )
        for i, timestep in enumerate(timesteps)
    ]
    return compile_trajectory(
        calls,
        prediction_type=schedule.prediction_type,
        final_level=_CLEAN,
        initial_scale=1.0,
    )


def _timesteps(schedule: NoiseSchedule, step_count: int) -> list[int]:
    stride = schedule.train_step_count // ORIGINAL_STEP_COUNT
    if stride < 1:
        raise ValueError(f"lcm needs a schedule of at least {ORIGINAL_STEP_COUNT} training steps")
    original = np.arange(ORIGINAL_STEP_COUNT, 0, -1) * stride - 1
    picks = np.linspace(0, ORIGINAL_STEP_COUNT, num=step_count, endpoint=False)
    return [int(timestep) for timestep in original[np.floor(picks).astype(int)]]


def _weights(timestep: int, target: NoiseLevel) -> Weights:
    """Consistency function with its boundary condition (equation 9), then noise to the target."""
    scaled = timestep * _TIMESTEP_SCALING
    width = math.hypot(scaled, _SIGMA_DATA)
    skip, out = (_SIGMA_DATA / width) ** 2, scaled / width
    return (target.signal * skip, target.signal * out, 0.0, target.noise)
