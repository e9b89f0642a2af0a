"""A loaded model draws what diffusers' own pipeline draws from the same folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from torch import Tensor

from services.diffusion.model import LoadedModel
from services.diffusion.noise import NoiseStream
from services.diffusion.samplers.registry import plan

PROMPT = "a red apple"
NEGATIVE = "blurred"
STEP_COUNT = 6
GUIDANCE = 4.0


@pytest.fixture(params=["plain", "emoji"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture
def model(folder: Path, plain_folder: Path, plain_model: LoadedModel, emoji_model: LoadedModel):
    return plain_model if folder == plain_folder else emoji_model


@pytest.fixture
def stock(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_latents(model: LoadedModel, sampler: str, seed: int, width: int, height: int) -> Tensor:
    """One row by hand, guidance included."""
    trajectory = plan(sampler, model.schedule, STEP_COUNT)
    shape = model.latent_shape(width, height)
    context = model.encode_prompts([NEGATIVE, PROMPT])
    state = trajectory.initial_scale * NoiseStream(seed, shape).draw()[None]
    memory = torch.zeros_like(state)
    for call in range(trajectory.call_count):
        scaled = (state * float(trajectory.input_scale[call])).expand(2, -1, -1, -1)
        timesteps = torch.full((2,), float(trajectory.timesteps[call]))
        unconditional, conditional = model.denoise(scaled, timesteps, context).chunk(2)
        output = unconditional + GUIDANCE * (conditional - unconditional)
        columns = torch.stack([state, output, memory, torch.zeros_like(state)])
        weights = torch.tensor(trajectory.coefficients[call])
        state, memory = torch.einsum("ij,jbchw->ibchw", weights, columns)
    return state


@pytest.mark.parametrize(
    ("sampler", "scheduler_class"), [("ddim", DDIMScheduler), ("euler", EulerDiscreteScheduler)]
)
def test_text_to_image_differs_from_the_stock_pipeline_by_at_most_one_level(
    model: LoadedModel, stock: StableDiffusionPipeline, sampler: str, scheduler_class: type
) -> None:
    stock.scheduler = scheduler_class.from_config(stock.scheduler.config)
    expected = stock(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=72,
        height=64,
        num_inference_steps=STEP_COUNT,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(7),
        output_type="pil",
    ).images[0]

    picture = model.decode(draw_latents(model, sampler, 7, 72, 64))[0]

    difference = np.abs(picture.astype(int) - np.asarray(expected).astype(int))
    assert picture.std() > 1.0
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_decoded_pixels_are_those_of_the_stock_pipeline(
    model: LoadedModel, stock: StableDiffusionPipeline
) -> None:
    latents = torch.randn(
        3, *model.latent_shape(64, 72), generator=torch.Generator().manual_seed(3)
    )
    decoded = stock.vae.decode(latents / stock.vae.config.scaling_factor).sample.detach()
    expected = stock.image_processor.postprocess(decoded, output_type="pil")

    pictures = model.decode(latents)

    assert pictures.shape == (3, 72, 64, 3)
    for picture, reference in zip(pictures, expected, strict=True):
        np.testing.assert_allclose(picture, np.asarray(reference), atol=1)


@pytest.mark.parametrize("prompt", ["", "a red apple", "Prompts far beyond the window are cut off"])
def test_embeddings_equal_those_of_the_stock_pipeline(
    model: LoadedModel, stock: StableDiffusionPipeline, prompt: str
) -> None:
    expected, _ = stock.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)

    torch.testing.assert_close(model.encode_prompts([prompt]), expected, atol=1e-6, rtol=0)


def test_every_row_of_the_denoiser_has_its_own_timestep(
    model: LoadedModel, stock: StableDiffusionPipeline
) -> None:
    latents = torch.randn(2, *model.latent_shape(64, 64))
    context = model.encode_prompts(["a", "b"])

    output = model.denoise(latents, torch.tensor([10.0, 950.5]), context)

    for row, timestep in enumerate((10.0, 950.5)):
        expected = stock.unet(latents[row : row + 1], timestep, context[row : row + 1]).sample
        torch.testing.assert_close(output[row], expected[0].detach(), atol=1e-5, rtol=0)
