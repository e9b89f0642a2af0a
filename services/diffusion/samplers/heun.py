"""Heun's method: Karras et al. 2022, algorithm 1 with gamma = 0.

Reference: diffusers' `HeunDiscreteScheduler`.
"""

from __future__ import annotations

from services.diffusion.samplers.sigmas import euler_weights, exploding, two_calls_a_step
from services.diffusion.samplers.trajectory import Call, Trajectory
from services.diffusion.schedule import NoiseSchedule


def heun(schedule: NoiseSchedule, step_count: int, *, first_step: int = 0) -> Trajectory:
    """Compile Heun's method; deterministic, second order, two calls a step but for the last."""
    return two_calls_a_step(schedule, step_count, first_step, _step)


def _step(
    step: int, timesteps: tuple[float, float], sigmas: tuple[float, float]
) -> tuple[Call, Call]:
    sigma, sigma_next = sigmas
    half = (sigma_next - sigma) / 2.0
    # Lines 4 and 5; the memory keeps x + half * d, where d = (x - x0) / sigma.
    predict = Call(
        timestep=timesteps[0],
        level=exploding(sigma),
        step=step,
        state=euler_weights(sigma, sigma_next),
        memory=(1.0 + half / sigma, -half / sigma, 0.0, 0.0),
    )
    # Lines 7 and 8; the other half with the slope at the predicted state.
    correct = Call(
        timestep=timesteps[1],
        level=exploding(sigma_next),
        step=step,
        state=(half / sigma_next, -half / sigma_next, 1.0, 0.0),
    )
    return predict, correct
