from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from services.diffusion.model import LoadedModel
from services.diffusion.previews import ENLARGEMENT, fit


def linear_encoder(pictures: Tensor) -> Tensor:
    """An autoencoder whose four channels are exact linear functions of the colour."""
    mixing = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [0.3, 0.0, 1.0], [0.2, 0.2, 0.2]])
    colours = F.avg_pool2d(pictures, 4)
    return torch.einsum("cr,brhw->bchw", mixing, colours) + 0.1


def test_a_linear_autoencoder_is_inverted() -> None:
    preview = fit(linear_encoder, side=32)
    pictures = torch.rand(5, 3, 1, 1).expand(5, 3, 32, 32) * 1.6 - 0.8

    colours = preview.colours(linear_encoder(pictures))

    torch.testing.assert_close(colours, F.avg_pool2d(pictures, 4), atol=0.02, rtol=0)


def test_a_preview_is_an_enlarged_latent_in_the_right_colour() -> None:
    preview = fit(linear_encoder, side=32)
    red = torch.tensor([0.8, -0.8, -0.8])[None, :, None, None].expand(2, 3, 32, 16)

    pixels = preview.draw(linear_encoder(red))

    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 8 * ENLARGEMENT, 4 * ENLARGEMENT, 3)
    assert pixels[..., 0].min() > 220
    assert pixels[..., 1:].max() < 35


def test_the_fit_is_the_same_every_time() -> None:
    latents = torch.randn(1, 4, 8, 8)

    first, second = (fit(linear_encoder, side=32).draw(latents) for _ in range(2))

    assert np.array_equal(first, second)


@pytest.mark.parametrize("fixture", ["plain_model", "emoji_model"])
def test_a_loaded_model_draws_previews(request: pytest.FixtureRequest, fixture: str) -> None:
    model: LoadedModel = request.getfixturevalue(fixture)

    pixels = model.preview(torch.randn(3, *model.latent_shape(64, 72)) * 100.0)

    assert pixels.shape == (3, 72, 64, 3)
