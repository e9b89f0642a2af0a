"""Every sampler follows diffusers' scheduler, state by state, from the same noise and model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from services.diffusion.noise import NoiseStream
from services.diffusion.samplers import SAMPLERS, plan
from services.diffusion.schedule import NoiseSchedule
from tests.diffusion.samplers.reference import (
    SHAPE,
    TRAINING,
    diffusers_scheduler,
    largest_errors,
    rational_model,
    row_of,
    run_diffusers,
    run_tables,
)

SPACINGS = ("leading", "trailing", "linspace")
STEP_COUNTS = (1, 2, 3, 4, 10, 20, 50)
# Both sides compute in float32. Measured: at most 2.8e-6 of a state's largest element from 7 steps
# on. Shorter runs leap across noise levels up to 650 times apart, where both lose digits: at most
# 3.6e-5 of the largest number in the run.
TOLERANCE = 4e-6
SHORT_RUN_TOLERANCE = 5e-5
SHORT_RUN = 7
# diffusers has no `sample` prediction for two of them, which the closed forms cover:
# test_prediction_types_are_interchangeable.
CASES = [
    (name, prediction)
    for name in SAMPLERS
    for prediction in ("epsilon", "v_prediction", "sample")
    if prediction != "sample" or name not in ("euler_ancestral", "dpmpp_sde")
]


def check_run(
    name: str,
    config: dict[str, Any],
    step_count: int,
    strength: float | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    schedule = NoiseSchedule.from_config(config)
    scheduler = diffusers_scheduler(name, config)
    scheduler.set_timesteps(step_count)
    trajectory = plan(name, schedule, step_count, strength=strength or 1.0)
    unit, draw = row_of(step_count)
    generator = torch.Generator().manual_seed(step_count)
    reference_unit = torch.randn((1, *SHAPE), generator=generator)

    if strength is None:
        timesteps = scheduler.timesteps
        reference_start = reference_unit * scheduler.init_noise_sigma
        start = unit * trajectory.initial_scale
    else:
        # As `StableDiffusionImg2ImgPipeline.get_timesteps` and `prepare_latents` do.
        skipped = max(step_count - min(int(step_count * strength), step_count), 0)
        timesteps = scheduler.timesteps[skipped * scheduler.order :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped * scheduler.order)
        clean = torch.linspace(-1.5, 1.5, unit.numel()).view_as(unit)
        reference_start = scheduler.add_noise(clean, reference_unit, timesteps[:1])
        start = trajectory.signal_scale[0] * clean + trajectory.noise_scale[0] * unit

    expected = [
        reference_start,
        *run_diffusers(scheduler, timesteps, reference_start, generator),
    ]
    states = [start, *run_tables(trajectory, start, draw)]
    np.testing.assert_allclose(trajectory.timesteps, timesteps.float().numpy(), rtol=0, atol=1e-4)
    if trajectory.step_count >= SHORT_RUN:
        assert max(largest_errors(states, expected)) < tolerance
    else:
        scale = max(float(state.abs().max()) for state in expected)
        pairs = zip(states, expected, strict=True)
        errors = [float((ours - theirs).abs().max()) for ours, theirs in pairs]
        assert max(errors) < SHORT_RUN_TOLERANCE * scale


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_every_state_equals_that_of_diffusers(name: str, prediction: str, spacing: str) -> None:
    config = {**TRAINING, "prediction_type": prediction, "timestep_spacing": spacing}
    for step_count in STEP_COUNTS:
        check_run(name, config, step_count)


@pytest.mark.parametrize("strength", [0.15, 0.58, 1.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_start_from_a_noised_image_equals_that_of_diffusers(name: str, strength: float) -> None:
    for prediction, spacing in (("epsilon", "leading"), ("v_prediction", "trailing")):
        config = {**TRAINING, "prediction_type": prediction, "timestep_spacing": spacing}
        for step_count in (10, 20, 50):
            check_run(name, config, step_count, strength)


@pytest.mark.parametrize("name", SAMPLERS)
def test_without_a_spacing_the_default_of_the_diffusers_scheduler_holds(name: str) -> None:
    check_run(name, {**TRAINING, "beta_end": 0.012}, 10)


@pytest.mark.parametrize("name", ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "lcm"])
def test_zero_terminal_snr_equals_diffusers(name: str) -> None:
    config = {
        **TRAINING,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    # The first step leaps from sigma 4096 to 20, where diffusers' Euler loses digits, how many
    # depends on the processor: measured 7.4e-6 and 1.5e-5. The next test shows whose error it is.
    check_run(name, config, 10, tolerance=5e-5)


def test_the_leap_from_zero_terminal_snr_loses_no_digits() -> None:
    config = {
        **TRAINING,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    scheduler = diffusers_scheduler("euler", config)
    scheduler.set_timesteps(10)
    trajectory = plan("euler", NoiseSchedule.from_config(config), 10)
    unit, draw = row_of(10)
    start = unit * trajectory.initial_scale
    exact, states = start.double(), []
    for timestep, (sigma, following) in zip(
        scheduler.timesteps.double(), pairwise(scheduler.sigmas.double()), strict=True
    ):
        size = torch.sqrt(sigma**2 + 1.0)
        v = rational_model(exact / size, timestep.view(1))
        clean = exact / size**2 - v * sigma / size
        exact = exact + (exact - clean) / sigma * (following - sigma)
        states.append(exact)
    # Measured 2.6e-7; diffusers in float32 is 1.5e-5 away.
    assert max(largest_errors(list(run_tables(trajectory, start, draw)), states)) < 1e-6


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
def test_the_cosine_schedule_equals_diffusers(name: str) -> None:
    config = {
        **TRAINING,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "timestep_spacing": "leading",
    }
    check_run(name, config, 10)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_timesteps_equal_those_of_diffusers_for_every_step_count(name: str, spacing: str) -> None:
    config = {**TRAINING, "timestep_spacing": spacing}
    schedule = NoiseSchedule.from_config(config)
    scheduler = diffusers_scheduler(name, config)
    for step_count in range(1, SAMPLERS[name].max_step_count + 1):
        scheduler.set_timesteps(step_count)
        actual = plan(name, schedule, step_count).timesteps
        # diffusers adds timestep -1 to some trailing grids, 61 steps for one, by a rounding error.
        expected = scheduler.timesteps.float().numpy()[: len(actual)]
        # Fractional ones pass through a float32 logarithm in diffusers.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4, err_msg=str(step_count))


@pytest.mark.parametrize("name", ["euler_ancestral", "lcm"])
def test_a_row_draws_its_noise_in_the_order_of_a_diffusers_pipeline(name: str) -> None:
    config = {**TRAINING, "timestep_spacing": "leading"}
    scheduler = diffusers_scheduler(name, config)
    scheduler.set_timesteps(4)
    generator = torch.Generator("cpu").manual_seed(7)
    start = torch.randn((1, *SHAPE), generator=generator) * scheduler.init_noise_sigma
    expected = run_diffusers(scheduler, scheduler.timesteps, start, generator)[-1]

    trajectory = plan(name, NoiseSchedule.from_config(config), 4)
    stream = NoiseStream(7, SHAPE)
    first = stream.draw()[None] * trajectory.initial_scale
    final = run_tables(trajectory, first, lambda: stream.draw()[None])[-1]
    torch.testing.assert_close(final, expected, rtol=1e-5, atol=1e-5)
