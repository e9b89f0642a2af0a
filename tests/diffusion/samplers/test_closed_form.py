"""Against data whose best denoiser, probability flow and moments are known exactly.

For data N(MEAN, SPREAD^2) a state `a x0 + b eps` has the posterior mean
`MEAN + a s^2 / (a^2 s^2 + b^2) (x - a MEAN)`, and along the probability flow
`(x / a - MEAN) / sqrt(s^2 + (b / a)^2)` stays constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from services.diffusion.noise import NoiseStream
from services.diffusion.samplers import SAMPLERS, Trajectory, advance, collate, denoise, plan
from services.diffusion.schedule import NoiseSchedule
from tests.diffusion.samplers.reference import TRAINING

MEAN, SPREAD = 0.8, 0.5
# Divisors of the 1000 training steps, so that DDIM's target is exactly its next timestep.
STEP_COUNTS = (25, 50, 100)
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_2m_karras": 2}

Denoiser = Callable[[Tensor, float, float], Tensor]


def posterior_mean(x: Tensor, signal: float, noise: float) -> Tensor:
    gain = signal * SPREAD**2 / (signal**2 * SPREAD**2 + noise**2)
    return MEAN + gain * (x - signal * MEAN)


def flow(x: Tensor, signal: float, noise: float, target: tuple[float, float]) -> Tensor:
    """Where the probability flow carries state x of one noise level at another."""
    spread, target_spread = (math.hypot(SPREAD, b / a) for a, b in ((signal, noise), target))
    return target[0] * (MEAN + (x / signal - MEAN) * target_spread / spread)


def end_of_flow(x: Tensor, signal: float, noise: float) -> Tensor:
    """The exact consistency function."""
    return flow(x, signal, noise, (1.0, 0.0))


def level(trajectory: Trajectory, call: int) -> tuple[float, float]:
    return float(trajectory.signal_scale[call]), float(trajectory.noise_scale[call])


def states(trajectory: Trajectory, stream: NoiseStream, denoiser: Denoiser) -> list[Tensor]:
    """States before every call, and the finished one, with a model that predicts x0."""
    x = stream.draw()[None] * trajectory.initial_scale
    memory = torch.zeros_like(x)
    visited = [x]
    for call in range(trajectory.call_count):
        output = denoiser(x, *level(trajectory, call))
        noise = stream.draw()[None] if trajectory.needs_noise[call] else None
        x, memory = advance(x, memory, output, noise, collate([(trajectory, call)]))
        visited.append(x)
    return visited


def schedule_for(prediction: str = "sample") -> NoiseSchedule:
    return NoiseSchedule.from_config(
        {**TRAINING, "prediction_type": prediction, "timestep_spacing": "trailing"}
    )


def common_level(name: str, trajectory: Trajectory) -> int:
    """The call that starts at a noise level which all step counts share, past most of the way."""
    if name == "dpmpp_2m_karras":
        return trajectory.call_count - 1
    # A step of Heun's method arrives at its target twice, the second time corrected.
    return int(np.flatnonzero(trajectory.timesteps == 199.0)[-1])


@pytest.mark.parametrize("name", ORDERS)
def test_deterministic_samplers_converge_to_the_exact_flow_at_their_order(name: str) -> None:
    errors = []
    for step_count in STEP_COUNTS:
        trajectory = plan(name, schedule_for(), step_count)
        visited = states(trajectory, NoiseStream(1, (4, 8, 8)), posterior_mean)
        call = common_level(name, trajectory)
        exact = flow(visited[0], *level(trajectory, 0), level(trajectory, call))
        errors.append(float((visited[call] - exact).abs().max()))
    observed = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert observed == pytest.approx([ORDERS[name]] * 2, abs=0.15)
    assert errors[-1] < (0.02 if ORDERS[name] == 1 else 0.002)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
def test_samples_approach_the_mean_and_spread_of_the_data(name: str) -> None:
    biases = []
    for step_count in (STEP_COUNTS[0], STEP_COUNTS[-1]):
        # 65,536 independent values: the spread is known to 0.3 %, the mean to 0.002.
        stream = NoiseStream(3, (4, 128, 128))
        samples = states(plan(name, schedule_for(), step_count), stream, posterior_mean)[-1]
        assert float(samples.mean()) == pytest.approx(MEAN, abs=0.01)
        biases.append(abs(float(samples.std()) / SPREAD - 1.0))
    assert biases[1] < 0.07
    assert biases[1] < 0.5 * biases[0]


@pytest.mark.parametrize("step_count", [1, 4, 50])
def test_lcm_is_exact_at_any_step_count_with_the_exact_consistency_function(
    step_count: int,
) -> None:
    trajectory = plan("lcm", schedule_for(), step_count)
    visited = states(trajectory, NoiseStream(3, (4, 128, 128)), end_of_flow)
    # The first state is unit noise, in which the last training step still has a little signal.
    assert float(visited[-1].mean()) == pytest.approx(MEAN, abs=0.04 if step_count == 1 else 0.01)
    assert float(visited[-1].std()) == pytest.approx(SPREAD, rel=0.01)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_sde"])
def test_stochastic_samplers_give_every_state_the_spread_of_its_noise_level(name: str) -> None:
    trajectory = plan(name, schedule_for(), 100)
    visited = states(trajectory, NoiseStream(4, (4, 128, 128)), posterior_mean)
    for call, x in enumerate(visited):
        signal, noise = level(trajectory, call)
        assert float(x.std()) == pytest.approx(math.hypot(signal * SPREAD, noise), rel=0.07)


@pytest.mark.parametrize("name", SAMPLERS)
def test_prediction_types_are_interchangeable(name: str) -> None:
    """One denoiser, told as noise, as velocity and as sample, gives one picture."""
    finals = {}
    for prediction in ("sample", "epsilon", "v_prediction"):
        trajectory = plan(name, schedule_for(prediction), 10)

        def output(x: Tensor, a: float, b: float, prediction: str = prediction) -> Tensor:
            clean = posterior_mean(x, a, b)
            noise = (x - a * clean) / b
            scale = math.hypot(a, b)
            velocity = (a * noise - b * clean) / scale
            return {"sample": clean, "epsilon": noise, "v_prediction": velocity}[prediction]

        finals[prediction] = states(trajectory, NoiseStream(5, (4, 4, 4)), output)[-1]
    torch.testing.assert_close(finals["epsilon"], finals["sample"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(finals["v_prediction"], finals["sample"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction"])
def test_the_preview_of_a_state_is_its_clean_latent(name: str, prediction: str) -> None:
    trajectory = plan(name, schedule_for(prediction), 7)
    clean = torch.linspace(-1.0, 1.0, 60).view(1, 4, 5, 3)
    noise = NoiseStream(6, (4, 5, 3)).draw()[None]
    for call in range(trajectory.call_count):
        a, b = level(trajectory, call)
        velocity = (a * noise - b * clean) / math.hypot(a, b)
        output = {"sample": clean, "epsilon": noise, "v_prediction": velocity}[prediction]
        preview = denoise(a * clean + b * noise, output, collate([(trajectory, call)]))
        torch.testing.assert_close(preview, clean, rtol=0, atol=2e-5)
