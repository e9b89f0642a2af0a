"""What the samplers in variance-exploding space share: `x = x0 + sigma * eps`.

Read by the Euler, Heun and DPM++ SDE samplers. They walk down falling noise levels that end at
sigma 0, where the state is the clean latent, and take the last step with Euler's method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from services.diffusion.samplers.trajectory import (
    Call,
    NoiseLevel,
    Trajectory,
    Weights,
    compile_trajectory,
)
from services.diffusion.schedule import NoiseSchedule, TimestepSpacing, spaced_timesteps

Pair = tuple[float, float]
StepCalls = Callable[[int, Pair, Pair], tuple[Call, Call]]
"""From the step, its timestep and the next, its sigma and the next, to the two calls of it."""

_DEFAULT_SPACING: TimestepSpacing = "linspace"


def one_call_a_step(
    schedule: NoiseSchedule,
    step_count: int,
    first_step: int,
    weights: Callable[[float, float], Weights],
) -> Trajectory:
    """Compile a sampler whose update follows from this sigma and the next."""
    timesteps, sigmas = _grid(schedule, step_count)
    calls = [
        Call(
            timestep=timesteps[i],
            level=exploding(sigmas[i]),
            step=i + 1 - first_step,
            state=weights(sigmas[i], sigmas[i + 1]),
        )
        for i in range(first_step, step_count)
    ]
    return _compile(schedule, calls, sigmas[0])


def two_calls_a_step(
    schedule: NoiseSchedule, step_count: int, first_step: int, step_calls: StepCalls
) -> Trajectory:
    """Compile a sampler that calls the model twice in every step but the last."""
    timesteps, sigmas = _grid(schedule, step_count)
    last = step_count - 1
    calls: list[Call] = []
    for i in range(first_step, last):
        here_and_next = (timesteps[i], timesteps[i + 1]), (sigmas[i], sigmas[i + 1])
        calls.extend(step_calls(i + 1 - first_step, *here_and_next))
    final = Call(
        timestep=timesteps[last],
        level=exploding(sigmas[last]),
        step=step_count - first_step,
        state=euler_weights(sigmas[last], 0.0),
    )
    return _compile(schedule, [*calls, final], sigmas[0])


def exploding(sigma: float) -> NoiseLevel:
    """Noise level of a state `x0 + sigma * eps`."""
    return NoiseLevel(signal=1.0, noise=sigma)


def euler_weights(sigma: float, sigma_next: float) -> Weights:
    """Euler step along the probability flow `dx/dsigma = (x - x0) / sigma`.

    Karras et al. 2022, algorithm 1, lines 4 and 5.
    """
    ratio = sigma_next / sigma
    return (ratio, 1.0 - ratio, 0.0, 0.0)


def ancestral_scales(sigma: float, sigma_next: float) -> tuple[float, float]:
    """(sigma_down, sigma_up): go down to the first, then add fresh noise of the second.

    The posterior of the forward process, Ho et al. 2020, equation 7, written in sigma.
    """
    variance_kept = sigma_next**2 / sigma**2
    return sigma_next**2 / sigma, sigma_next * math.sqrt(1.0 - variance_kept)


def _grid(schedule: NoiseSchedule, step_count: int) -> tuple[list[float], list[float]]:
    """Timesteps of all steps, and their sigmas with a final 0."""
    timesteps = spaced_timesteps(schedule, step_count, default_spacing=_DEFAULT_SPACING)
    sigmas = np.interp(timesteps, np.arange(schedule.train_step_count), schedule.sigmas)
    return timesteps.tolist(), [*sigmas.tolist(), 0.0]


def _compile(schedule: NoiseSchedule, calls: Sequence[Call], sigma_max: float) -> Trajectory:
    # Leading spacing starts below the last training step, where some signal is left; diffusers
    # then gives pure noise the variance that a noised image of unit variance would have.
    leading = (schedule.timestep_spacing or _DEFAULT_SPACING) == "leading"
    return compile_trajectory(
        calls,
        prediction_type=schedule.prediction_type,
        final_level=exploding(0.0),
        initial_scale=math.hypot(sigma_max, 1.0) if leading else sigma_max,
    )
