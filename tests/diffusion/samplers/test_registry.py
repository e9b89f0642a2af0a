"""Names, limits and the cache of compiled samplers."""

from __future__ import annotations

import numpy as np
import pytest

from services.diffusion.samplers import SAMPLERS, plan
from services.diffusion.schedule import NoiseSchedule
from tests.diffusion.samplers.reference import TRAINING

SCHEDULE = NoiseSchedule.from_config(TRAINING)


def test_the_registry_names_every_sampler_that_is_promised() -> None:
    assert list(SAMPLERS) == [
        "ddim",
        "euler",
        "euler_ancestral",
        "heun",
        "dpmpp_2m",
        "dpmpp_2m_karras",
        "dpmpp_sde",
        "lcm",
    ]
    assert all(sampler.name == name for name, sampler in SAMPLERS.items())


def test_an_unknown_sampler_is_refused_with_the_known_names() -> None:
    with pytest.raises(KeyError, match=r"'plms'.*ddim, euler.*lcm"):
        plan("plms", SCHEDULE, 10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_count_out_of_range_is_refused_with_the_range(name: str) -> None:
    highest = SAMPLERS[name].max_step_count
    for step_count in (-1, 0, highest + 1):
        with pytest.raises(ValueError, match=rf"{name} must be between 1 and {highest}, not"):
            plan(name, SCHEDULE, step_count)
    assert plan(name, SCHEDULE, highest).step_count == highest


def test_no_more_steps_are_planned_than_the_schedule_can_tell_apart() -> None:
    schedule = NoiseSchedule.from_config({**TRAINING, "num_train_timesteps": 20})
    with pytest.raises(ValueError, match="between 1 and 19, not 20"):
        plan("euler", schedule, 20)
    with pytest.raises(ValueError, match="at least 50 training steps"):
        plan("lcm", schedule, 4)


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan")])
def test_a_strength_outside_0_to_1_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength must be above 0"):
        plan("euler", SCHEDULE, 10, strength=strength)


def test_a_strength_that_leaves_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves none of 10 steps"):
        plan("euler", SCHEDULE, 10, strength=0.09)


def test_noise_prediction_at_zero_terminal_snr_is_refused() -> None:
    schedule = NoiseSchedule.from_config(
        {**TRAINING, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    )
    with pytest.raises(ValueError, match="undetermined at zero signal-to-noise"):
        plan("ddim", schedule, 10)


def test_equal_plans_share_their_tables_and_schedules_do_not() -> None:
    other = NoiseSchedule.from_config({**TRAINING, "beta_end": 0.012})
    assert plan("heun", SCHEDULE, 9) is plan("heun", SCHEDULE, 9)
    assert plan("heun", SCHEDULE, 9) is not plan("heun", other, 9)
    assert plan("heun", SCHEDULE, 9) is not plan("heun", SCHEDULE, 9, strength=0.5)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_calls_steps_and_noise_are_as_the_registry_says(name: str, strength: float) -> None:
    sampler = SAMPLERS[name]
    trajectory = plan(name, SCHEDULE, 12, strength=strength)
    steps = int(12 * strength)
    assert trajectory.step_count == steps
    assert trajectory.call_count == sampler.calls_per_step * (steps - 1) + 1
    assert trajectory.needs_noise.tolist() == [sampler.stochastic] * (trajectory.call_count - 1) + [
        False
    ]
    counts = np.bincount(trajectory.step_of_call)[1:]
    assert counts.tolist() == [sampler.calls_per_step] * (steps - 1) + [1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trajectory_ends_clean_and_its_tables_are_finite_and_read_only(name: str) -> None:
    trajectory = plan(name, NoiseSchedule.from_config({**TRAINING, "set_alpha_to_one": True}), 5)
    assert (trajectory.signal_scale[-1], trajectory.noise_scale[-1]) == (1.0, 0.0)
    assert np.isfinite(trajectory.coefficients).all()
    with pytest.raises(ValueError, match="read-only"):
        trajectory.coefficients[0] = 0.0
