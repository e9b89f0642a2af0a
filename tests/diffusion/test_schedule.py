"""Noise schedules read from scheduler configurations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.diffusion.schedule import NoiseSchedule, spaced_timesteps, timestep_of_sigma
from tests.diffusion.samplers.reference import diffusers_scheduler

STABLE_DIFFUSION_1: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"beta_schedule": "linear", "num_train_timesteps": 400},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001 * (i + 1) for i in range(50)], "num_train_timesteps": 50},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_the_table_is_that_of_diffusers_to_the_last_bit(change: dict[str, Any]) -> None:
    config = {**STABLE_DIFFUSION_1, **change}
    reference = diffusers_scheduler("ddim", config)
    schedule = NoiseSchedule.from_config(config)
    np.testing.assert_array_equal(schedule.alphas_cumprod, reference.alphas_cumprod.numpy())
    assert schedule.final_alpha_cumprod == reference.final_alpha_cumprod.item()


def test_the_stable_diffusion_1_file_is_read_as_it_is() -> None:
    schedule = NoiseSchedule.from_config(STABLE_DIFFUSION_1)
    assert schedule.train_step_count == 1000
    assert schedule.prediction_type == "epsilon"
    assert schedule.timestep_spacing is None
    assert schedule.steps_offset == 1
    assert schedule.final_alpha_cumprod == schedule.alphas_cumprod[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_sample": True}, "clip_sample"),
        ({"thresholding": True}, "thresholding"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"timestep_type": "continuous"}, "timestep_type 'continuous'"),
        ({"variance_type": "learned_range"}, "variance_type"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'.*epsilon"),
        ({"prediction_type": None}, "prediction_type None"),
        ({"timestep_spacing": "even"}, "timestep_spacing 'even'.*leading"),
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace'.*scaled_linear"),
        ({"beta_start": None}, "beta_start must be a positive number, not None"),
        ({"beta_start": "0.1"}, "beta_start must be a positive number, not '0.1'"),
        ({"beta_end": 1.5}, "between 0 and 1"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps must be an integer"),
        ({"num_train_timesteps": 1}, "at least two training steps"),
        ({"steps_offset": 2}, "steps_offset must be 0 or 1, not 2"),
        ({"steps_offset": -1}, "steps_offset must be 0 or 1, not -1"),
        ({"trained_betas": [0.1, 0.2]}, "num_train_timesteps entries"),
        ({"trained_betas": "0.1"}, "list of numbers"),
        ({"trained_betas": [0.1, "x"], "num_train_timesteps": 2}, "list of numbers"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_config({**STABLE_DIFFUSION_1, **change})


def test_betas_are_never_guessed() -> None:
    with pytest.raises(ValueError, match="beta_start"):
        NoiseSchedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"})


def test_a_table_that_does_not_fall_is_refused() -> None:
    with pytest.raises(ValueError, match="fall strictly"):
        NoiseSchedule(alphas_cumprod=np.array([0.9, 0.9, 0.1]))


def test_the_schedule_keeps_its_own_read_only_table() -> None:
    table = np.array([0.9, 0.5, 0.1])
    schedule = NoiseSchedule(alphas_cumprod=table)
    table[0] = 0.0
    assert schedule.alphas_cumprod[0] == 0.9
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 0.0


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_spacing_gives_as_many_falling_training_steps_as_asked(spacing: str) -> None:
    schedule = NoiseSchedule.from_config({**STABLE_DIFFUSION_1, "timestep_spacing": spacing})
    for step_count in range(1, 500):
        timesteps = spaced_timesteps(schedule, step_count, default_spacing="leading")
        assert len(timesteps) == step_count
        assert (np.diff(timesteps) < 0.0).all()
        assert timesteps[-1] >= 0.0
        assert timesteps[0] <= 999.0


def test_the_timestep_of_a_sigma_inverts_the_table_and_is_clamped_to_it() -> None:
    schedule = NoiseSchedule.from_config(STABLE_DIFFUSION_1)
    steps = np.array([0, 1, 500, 999])
    np.testing.assert_allclose(timestep_of_sigma(schedule, schedule.sigmas[steps]), steps)
    np.testing.assert_array_equal(timestep_of_sigma(schedule, np.array([1e-9, 1e9])), [0, 999])
