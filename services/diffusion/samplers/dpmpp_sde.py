"""DPM-Solver++ SDE, single-step: k-diffusion's `sample_dpmpp_sde` with r = 1/2 and eta = 1.

It steps to the geometric middle of two noise levels and uses the estimate there for the whole step.
Reference: diffusers' `DPMSolverSDEScheduler`.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from services.diffusion.samplers.sigmas import ancestral_scales, exploding, two_calls_a_step
from services.diffusion.samplers.trajectory import Call, Trajectory
from services.diffusion.schedule import NoiseSchedule, timestep_of_sigma


def dpmpp_sde(schedule: NoiseSchedule, step_count: int, *, first_step: int = 0) -> Trajectory:
    """Compile DPM++ SDE; two calls and two draws a step but for the last.

    The two draws of a step are increments of one Brownian motion over sigma: the noise of the
    whole step contains that of its first half.
    """
    return two_calls_a_step(schedule, step_count, first_step, partial(_step, schedule))


def _step(
    schedule: NoiseSchedule,
    step: int,
    timesteps: tuple[float, float],
    sigmas: tuple[float, float],
) -> tuple[Call, Call]:
    sigma, sigma_next = sigmas
    middle = math.sqrt(sigma * sigma_next)
    middle_down, middle_up = ancestral_scales(sigma, middle)
    down, up = ancestral_scales(sigma, sigma_next)
    first_share = (sigma - middle) / (sigma - sigma_next)
    # The memory keeps what the second call needs of x and of the first increment.
    to_middle = Call(
        timestep=timesteps[0],
        level=exploding(sigma),
        step=step,
        state=(middle_down / sigma, 1.0 - middle_down / sigma, 0.0, middle_up),
        memory=(down / sigma, 0.0, 0.0, up * math.sqrt(first_share)),
    )
    from_middle = Call(
        timestep=float(timestep_of_sigma(schedule, np.array(middle))),
        level=exploding(middle),
        step=step,
        state=(0.0, 1.0 - down / sigma, 1.0, up * math.sqrt(1.0 - first_share)),
    )
    return to_middle, from_middle
