"""Painting a drawing's main colour, and figures about pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.recipe.captions import BACKGROUNDS, OBJECT_COLOURS
from models.recipe.colours import from_oklab, natural_colour, paint, to_oklab
from models.recipe.measures import (
    as_bytes,
    as_tensor,
    corner_colours,
    frechet_distance,
    rms_difference,
    thing_colours,
)


def disc(colour: tuple[int, int, int], leaf: tuple[int, int, int]) -> Tensor:
    """A premultiplied view of a disc with a small leaf of another colour."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    inside = (x - 64).square() + (y - 64).square() < 40**2
    top = (x - 64).square() + (y - 14).square() < 8**2
    view = torch.zeros(4, 128, 128)
    for mask, shade in ((inside, colour), (top, leaf)):
        view[:, mask] = torch.tensor([*shade, 255.0])[:, None]
    return view


RED, GREEN = BACKGROUNDS["red"], BACKGROUNDS["green"]


def test_oklab_and_back_is_the_same_colour() -> None:
    picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(from_oklab(to_oklab(picture)), picture, atol=1e-3)
    white = to_oklab(torch.ones(3, 1, 1)).flatten()
    assert torch.allclose(white, torch.tensor([1.0, 0.0, 0.0]), atol=1e-3)


@pytest.mark.parametrize("name", OBJECT_COLOURS)
def test_painting_gives_the_named_colour_and_spares_the_leaf(name: str) -> None:
    painted = paint(disc(RED, GREEN), name)
    assert natural_colour(painted) == name
    assert torch.allclose(painted[:3, 14, 64], torch.tensor(GREEN).float(), atol=1.5)
    assert torch.equal(painted[3], disc(RED, GREEN)[3])
    assert float(painted[:, 0, 0].abs().sum()) == 0.0


def test_grey_things_have_no_main_colour() -> None:
    assert natural_colour(disc((150, 150, 150), GREEN)) is None
    assert natural_colour(disc(RED, GREEN)) == "red"


def test_the_colour_of_a_thing_on_white_is_seen() -> None:
    view = disc(BACKGROUNDS["blue"], GREEN)
    picture = (view[:3] + 255.0 - view[3:]).byte().permute(1, 2, 0).numpy()
    assert thing_colours(picture[None]) == ["blue"]


def test_corner_colours_ignore_the_middle() -> None:
    pictures = np.full((1, 128, 128, 3), (10, 200, 30), np.uint8)
    pictures[:, 20:108, 20:108] = 255
    assert corner_colours(pictures).tolist() == [[10.0, 200.0, 30.0]]


def test_differences_are_root_mean_squares() -> None:
    first = np.zeros((2, 4, 4, 3), np.uint8)
    second = np.stack([first[0] + 100, first[1] + 6])
    assert rms_difference(first, second).tolist() == [100.0, 6.0]


def test_pictures_span_minus_one_to_one_and_come_back() -> None:
    pictures = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    tensor = as_tensor(pictures)
    assert tensor.shape == (1, 3, 16, 16)
    assert float(tensor.min()) == -1.0
    assert float(tensor.max()) == 1.0
    assert (as_bytes(tensor) == pictures).all()


def test_the_distance_of_gaussians_has_its_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 3, generator=generator)
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-3)
    assert frechet_distance(features, features + 2.0) == pytest.approx(12.0, abs=1e-2)
    spread = (features - features.mean(0)) * 3.0 + features.mean(0)
    expected = 4.0 * float(features.var(0).sum())
    assert frechet_distance(features, spread) == pytest.approx(expected, rel=1e-2)
