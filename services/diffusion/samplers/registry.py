"""The samplers by name, with what a client may ask of each, and the cache of their tables.

The servicer validates against `SAMPLERS` and lists it; the batcher calls `plan` once per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

from services.diffusion.samplers.ddim import ddim
from services.diffusion.samplers.dpmpp_2m import dpmpp_2m, dpmpp_2m_karras
from services.diffusion.samplers.dpmpp_sde import dpmpp_sde
from services.diffusion.samplers.euler import euler, euler_ancestral
from services.diffusion.samplers.heun import heun
from services.diffusion.samplers.lcm import ORIGINAL_STEP_COUNT, lcm
from services.diffusion.samplers.trajectory import Trajectory
from services.diffusion.schedule import NoiseSchedule

MAX_STEP_COUNT = 150


class Compile(Protocol):
    """The function that is a sampler."""

    def __call__(
        self, schedule: NoiseSchedule, step_count: int, *, first_step: int = 0
    ) -> Trajectory:
        """Tables for `step_count` steps, of which the first `first_step` are left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """What is known of a sampler before it runs.

    A run of n steps calls the model `calls_per_step * (n - 1) + 1` times: the last step, onto
    zero noise, is always a single call.
    """

    name: str
    display_name: str
    compile: Compile
    calls_per_step: int = 1
    stochastic: bool = False
    min_step_count: int = 1
    max_step_count: int = MAX_STEP_COUNT


_ALL = (
    Sampler(name="ddim", display_name="DDIM", compile=ddim),
    Sampler(name="euler", display_name="Euler", compile=euler),
    Sampler(
        name="euler_ancestral",
        display_name="Euler ancestral",
        compile=euler_ancestral,
        stochastic=True,
    ),
    Sampler(name="heun", display_name="Heun", compile=heun, calls_per_step=2),
    Sampler(name="dpmpp_2m", display_name="DPM++ 2M", compile=dpmpp_2m),
    Sampler(name="dpmpp_2m_karras", display_name="DPM++ 2M Karras", compile=dpmpp_2m_karras),
    Sampler(
        name="dpmpp_sde",
        display_name="DPM++ SDE",
        compile=dpmpp_sde,
        calls_per_step=2,
        stochastic=True,
    ),
    Sampler(
        name="lcm",
        display_name="LCM",
        compile=lcm,
        stochastic=True,
        max_step_count=ORIGINAL_STEP_COUNT,
    ),
)

SAMPLERS: Mapping[str, Sampler] = MappingProxyType({sampler.name: sampler for sampler in _ALL})


@lru_cache(maxsize=512)
def plan(
    name: str, schedule: NoiseSchedule, step_count: int, *, strength: float = 1.0
) -> Trajectory:
    """Tables of sampler `name`; equal arguments give the same object.

    With `strength` in (0, 1) only the last `int(step_count * strength)` steps remain, for a start
    from a noised source image, as diffusers' image-to-image pipelines count them.
    Raises `KeyError` naming the known samplers, and `ValueError` for a step count outside the
    sampler's range, more steps than the schedule can tell apart, a strength outside (0, 1] or so
    small that no step remains, and a model whose prediction the schedule leaves undetermined.
    """
    sampler = SAMPLERS.get(name)
    if sampler is None:
        raise KeyError(f"unknown sampler {name!r}; known are {', '.join(SAMPLERS)}")
    _check_step_count(sampler, schedule, step_count)
    return sampler.compile(schedule, step_count, first_step=_first_step(step_count, strength))


def _check_step_count(sampler: Sampler, schedule: NoiseSchedule, step_count: int) -> None:
    highest = min(sampler.max_step_count, schedule.train_step_count - 1)
    if not sampler.min_step_count <= step_count <= highest:
        raise ValueError(
            f"step_count for {sampler.name} must be between {sampler.min_step_count} and "
            f"{highest}, not {step_count}"
        )


def _first_step(step_count: int, strength: float) -> int:
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be above 0 and at most 1, not {strength}")
    remaining = int(step_count * strength)
    if remaining < 1:
        raise ValueError(f"strength {strength} leaves none of {step_count} steps")
    return step_count - remaining
