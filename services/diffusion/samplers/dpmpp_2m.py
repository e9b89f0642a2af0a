"""DPM-Solver++ 2M, on the schedule's timesteps or on Karras noise levels.

Lu et al. 2022b ("DPM-Solver++"), algorithm 2. Reference: diffusers' `DPMSolverMultistepScheduler`
with its defaults (order 2, midpoint, final sigma zero), `use_karras_sigmas` false and true.
"""

from __future__ import annotations

import math

import numpy as np

from services.diffusion.samplers.trajectory import (
    Call,
    NoiseLevel,
    Trajectory,
    Weights,
    compile_trajectory,
)
from services.diffusion.schedule import (
    Float64Array,
    NoiseSchedule,
    timestep_of_sigma,
    trailing_timesteps,
)

_KARRAS_RHO = 7.0
_REMEMBER_DENOISED = (0.0, 1.0, 0.0, 0.0)


def dpmpp_2m(schedule: NoiseSchedule, step_count: int, *, first_step: int = 0) -> Trajectory:
    """Compile DPM++ 2M on the schedule's own timesteps; deterministic, second order."""
    timesteps = _multistep_timesteps(schedule, step_count)
    return _multistep(schedule, timesteps, schedule.sigmas[timesteps.astype(int)], first_step)


def dpmpp_2m_karras(schedule: NoiseSchedule, step_count: int, *, first_step: int = 0) -> Trajectory:
    """Compile DPM++ 2M on the noise levels of Karras et al. 2022, equation 5.

    The model is told whole timesteps, as in diffusers.
    """
    low, high = (float(schedule.sigmas[i]) ** (1.0 / _KARRAS_RHO) for i in (0, -1))
    sigmas = (high + np.linspace(0.0, 1.0, step_count) * (low - high)) ** _KARRAS_RHO
    return _multistep(schedule, timestep_of_sigma(schedule, sigmas).round(), sigmas, first_step)


def _multistep_timesteps(schedule: NoiseSchedule, step_count: int) -> Float64Array:
    # Unlike the other samplers, the grid has one more point, whose end is left out.
    train_count = schedule.train_step_count
    spacing = schedule.timestep_spacing or "linspace"
    if spacing == "linspace":
        return np.linspace(0, train_count - 1, step_count + 1)[:0:-1].round()
    if spacing == "leading":
        stride = train_count // (step_count + 1)
        return np.arange(step_count, 0, -1, dtype=float) * stride + schedule.steps_offset
    return trailing_timesteps(train_count, step_count)


def _multistep(
    schedule: NoiseSchedule, timesteps: Float64Array, sigmas: Float64Array, first_step: int
) -> Trajectory:
    levels = [_preserving(sigma) for sigma in [*sigmas[first_step:].tolist(), 0.0]]
    calls = [
        Call(
            timestep=timestep,
            level=levels[i],
            step=i + 1,
            state=_multistep_weights(levels, i),
            memory=_REMEMBER_DENOISED,
        )
        for i, timestep in enumerate(timesteps[first_step:].tolist())
    ]
    return compile_trajectory(
        calls,
        prediction_type=schedule.prediction_type,
        final_level=levels[-1],
        initial_scale=1.0,
    )


def _multistep_weights(levels: list[NoiseLevel], i: int) -> Weights:
    """Lu et al. 2022b, equation 13; first order in the first step and in the last, onto sigma 0."""
    level, target = levels[i], levels[i + 1]
    ratio = target.noise / level.noise
    gain = target.signal - level.signal * ratio  # -alpha_t (exp(-h) - 1)
    if i == 0 or target.noise == 0.0:
        return (ratio, gain, 0.0, 0.0)
    step, step_before = (
        _log_snr(target) - _log_snr(level),
        _log_snr(level) - _log_snr(levels[i - 1]),
    )
    extrapolation = step / (2.0 * step_before)  # 1 / (2 r)
    return (ratio, gain * (1.0 + extrapolation), -gain * extrapolation, 0.0)


def _preserving(sigma: float) -> NoiseLevel:
    scale = 1.0 / math.hypot(sigma, 1.0)
    return NoiseLevel(signal=scale, noise=sigma * scale)


def _log_snr(level: NoiseLevel) -> float:
    return math.log(level.signal / level.noise)
