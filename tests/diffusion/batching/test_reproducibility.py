"""The same seed gives the same picture, whatever else is in the batch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from services.diffusion.model import UInt8Array
from services.diffusion.samplers import SAMPLERS
from tests.diffusion.batching.doubles import Harness, latent_of, sink_of


def _alone(**spec: object) -> UInt8Array:
    harness = Harness(max_batch_rows=2)
    job = harness.submit(**spec)
    harness.run()
    return sink_of(job).pictures[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_a_picture_does_not_depend_on_the_batch_bit_for_bit(
    sampler: str, guidance_scale: float
) -> None:
    spec = {"sampler": sampler, "guidance_scale": guidance_scale, "seed": 77, "step_count": 9}
    random_choice = random.Random(sampler)
    harness = Harness(max_batch_rows=7)
    job = harness.submit(**spec)
    for step in range(60):
        if step % 2 == 0:
            harness.submit(
                sampler=random_choice.choice(list(SAMPLERS)),
                guidance_scale=random_choice.choice([0.0, 3.0]),
                step_count=random_choice.randint(1, 12),
                seed=step,
                prompt=f"thing {step}",
            )
        harness.tick()
    harness.run()
    assert np.array_equal(sink_of(job).pictures[0], _alone(**spec))


def test_a_preempted_row_goes_on_where_it_was() -> None:
    spec = {"sampler": "dpmpp_sde", "step_count": 20, "seed": 5}
    harness = Harness(max_batch_rows=2)
    job = harness.submit(**spec)
    harness.tick(5)
    for seed in range(3):
        harness.submit(step_count=2, seed=seed)
    before = job.completed_step_count
    harness.tick(6)
    assert job.completed_step_count == before
    harness.run()
    assert np.array_equal(sink_of(job).pictures[0], _alone(**spec))


def test_different_seeds_and_prompts_give_different_pictures() -> None:
    first = _alone(seed=1, prompt="a dog")
    assert not np.array_equal(first, _alone(seed=2, prompt="a dog"))
    assert not np.array_equal(first, _alone(seed=1, prompt="a rocket"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_gpu_draws_what_the_cpu_draws(sampler: str) -> None:
    harness = Harness()
    harness.model.device = "cuda"
    job = harness.submit(sampler=sampler, seed=3, prompt="a dog")
    harness.submit(sampler="euler", seed=4, prompt="a cat", guidance_scale=1.0)
    harness.run()
    on_cpu = _alone(sampler=sampler, seed=3, prompt="a dog")
    assert np.allclose(latent_of(sink_of(job).pictures[0]), latent_of(on_cpu), atol=1e-4)
