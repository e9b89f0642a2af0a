"""Compact networks in 8 bits: what balancing leaves alone, and how far pictures are off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from services.graphs.openvino_graph import OpenVinoGraph
from services.graphs.store import GraphStore
from services.upscale.architectures.recognition import build, recognise
from services.upscale.eight_bits import balanced, drawn_pictures
from services.upscale.loading import checked_weights
from services.upscale.sources import tiles_source
from services.upscale.weights.library import Entry
from services.upscale.weights.parity import PHOTOS, photo_crop
from tests.upscale.tiny import rrdbnet_weights

pytestmark = pytest.mark.timeout(900)

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights(entries: dict[str, Entry]) -> Weights:
    return checked_weights(entries["realesr-animevideov3"])[0]


@pytest.fixture(scope="module")
def graph(
    entries: dict[str, Entry], weights: Weights, tmp_path_factory: pytest.TempPathFactory
) -> OpenVinoGraph:
    descriptor = entries["realesr-animevideov3"].descriptor
    assert descriptor is not None
    source = tiles_source(weights, revision="r", tiling=descriptor.tiles(), eight_bit=True)
    path = GraphStore(tmp_path_factory.mktemp("graphs")).quantized_path(source)
    return OpenVinoGraph(path, precision="float32", thread_count=1, quantized=True)


def photo(name: str) -> Tensor:
    return torch.from_numpy(photo_crop(name)).permute(2, 0, 1)[None].float().div(255).contiguous()


def slope() -> Tensor:
    along = torch.linspace(0.2, 0.8, 96)
    return torch.stack(
        [along.expand(96, -1), along[:, None].expand(-1, 96), 1 - along.expand(96, -1)]
    )[None].contiguous()


def test_balancing_channels_changes_no_result(weights: Weights) -> None:
    pictures = drawn_pictures()[:2, :, :48, :48]
    with torch.inference_mode():
        before = build(recognise(weights), weights)(pictures)
        after = build(recognise(weights), balanced(weights))(pictures)

    torch.testing.assert_close(after, before, atol=2e-5, rtol=0)
    name = "body.2.weight"
    assert not torch.allclose(balanced(weights)[name], weights[name].float())


@pytest.mark.parametrize("name", [*PHOTOS, "slope"])
def test_pictures_stay_within_two_levels_in_the_mean(
    graph: OpenVinoGraph, weights: Weights, name: str
) -> None:
    tiles = slope() if name == "slope" else photo(name)
    with torch.inference_mode():
        exact = build(recognise(weights), weights)(tiles).clamp(0, 1) * 255

    difference = graph(tiles).permute(0, 3, 1, 2) - exact

    assert graph.runtime == "openvino-int8"
    assert difference.abs().mean() < 2.0
    assert difference.square().mean().sqrt() < 2.55, "40 dB"
    # Mostly what is off is off both ways; a flat colour may change by two levels.
    assert difference.mean(dim=(0, 2, 3)).abs().max() < 3.0


def test_beyond_its_sight_a_pixel_does_not_depend_on_the_tile(graph: OpenVinoGraph) -> None:
    tiles = photo("chelsea")
    whole = graph(tiles)

    part = graph(tiles[:, :, :, :64].contiguous())

    seen = (64 - 18) * 4
    assert torch.equal(part[:, :, :seen], whole[:, :, :seen])
    assert not torch.equal(part[:, :, seen:], whole[:, :, seen : part.shape[2]])


def test_networks_that_join_layers_keep_their_precision(entries: dict[str, Entry]) -> None:
    descriptor = entries["realesrgan-x4plus"].descriptor
    assert descriptor is not None

    source = tiles_source(
        rrdbnet_weights(), revision="r", tiling=descriptor.tiles(), eight_bit=True
    )

    assert source.calibration is None
    assert "balanced" not in source.revision
