"""Euler and Euler ancestral in sigma.

Karras et al. 2022, algorithm 1 without the second-order correction. The ancestral variant steps
down further and adds fresh noise, as k-diffusion's `sample_euler_ancestral` does.
References: diffusers' `EulerDiscreteScheduler` and `EulerAncestralDiscreteScheduler`.
"""

from __future__ import annotations

from services.diffusion.samplers.sigmas import ancestral_scales, euler_weights, one_call_a_step
from services.diffusion.samplers.trajectory import Trajectory, Weights
from services.diffusion.schedule import NoiseSchedule


def euler(schedule: NoiseSchedule, step_count: int, *, first_step: int = 0) -> Trajectory:
    """Compile Euler's method; deterministic, first order."""
    return one_call_a_step(schedule, step_count, first_step, euler_weights)


def euler_ancestral(schedule: NoiseSchedule, step_count: int, *, first_step: int = 0) -> Trajectory:
    """Compile Euler ancestral; fresh noise in every step but the last."""
    return one_call_a_step(schedule, step_count, first_step, _ancestral_weights)


def _ancestral_weights(sigma: float, sigma_next: float) -> Weights:
    sigma_down, sigma_up = ancestral_scales(sigma, sigma_next)
    state, denoised, memory, _ = euler_weights(sigma, sigma_down)
    return (state, denoised, memory, sigma_up)
