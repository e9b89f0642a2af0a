"""DDIM without noise: Song et al. 2021, equation 12 with sigma_t = 0.

Reference: diffusers' `DDIMScheduler` with eta 0.
"""

from __future__ import annotations

import math

from services.diffusion.samplers.trajectory import Call, NoiseLevel, Trajectory, compile_trajectory
from services.diffusion.schedule import NoiseSchedule, spaced_timesteps


def ddim(schedule: NoiseSchedule, step_count: int, *, first_step: int = 0) -> Trajectory:
    """Compile DDIM.

    A step aims `T // step_count` training steps below its timestep, as in diffusers. For linspace,
    and for trailing where step_count does not divide T, that is not quite the next timestep.
    """
    timesteps = spaced_timesteps(schedule, step_count, default_spacing="leading")
    stride = schedule.train_step_count // step_count
    visited = timesteps.round().astype(int)[first_step:]
    targets = [_target(schedule, timestep - stride) for timestep in visited]
    calls = [
        _call(float(timestep), level_at(schedule, timestep), target, step)
        for step, (timestep, target) in enumerate(zip(visited, targets, strict=True), start=1)
    ]
    return compile_trajectory(
        calls,
        prediction_type=schedule.prediction_type,
        final_level=targets[-1],
        initial_scale=1.0,
    )


def level_at(schedule: NoiseSchedule, timestep: int) -> NoiseLevel:
    """Variance-preserving noise level of a training step."""
    return _level(float(schedule.alphas_cumprod[timestep]))


def _call(timestep: float, level: NoiseLevel, target: NoiseLevel, step: int) -> Call:
    # x' = a' x0 + b' eps with eps = (x - a x0) / b.
    ratio = target.noise / level.noise
    state = (ratio, target.signal - level.signal * ratio, 0.0, 0.0)
    return Call(timestep=timestep, level=level, step=step, state=state)


def _target(schedule: NoiseSchedule, timestep: int) -> NoiseLevel:
    if timestep < 0:
        return _level(schedule.final_alpha_cumprod)
    return level_at(schedule, timestep)


def _level(alpha_cumprod: float) -> NoiseLevel:
    return NoiseLevel(signal=math.sqrt(alpha_cumprod), noise=math.sqrt(1.0 - alpha_cumprod))
