"""Tiles of real networks meet without a seam; with upstream's padding they do not.

The networks run in float32: what differs between tiled and untiled is what a tile does not see.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor, nn

from services.upscale.architectures.recognition import build, recognise
from services.upscale.loading import checked_weights
from services.upscale.model import Tiling, UInt8Array
from services.upscale.weights.library import Entry
from services.upscale.weights.parity import photo_crop
from tests.upscale.doubles import NearestUpscaler, levels, new_batcher, run, submit

UPSTREAM_PADDING = 10
"""`tile_pad` of upstream's command, which crops without a blend."""

pytestmark = pytest.mark.timeout(900)


class TorchUpscaler(NearestUpscaler):
    """A network in torch, in float32."""

    def __init__(self, network: nn.Module, tiling: Tiling) -> None:
        super().__init__("torch", tiling=tiling, max_batch_pixels=1)
        self._network = network

    def enlarge(self, tiles_B3hw: Tensor, denoise_strength: float | None) -> Tensor:
        return levels(self._network(tiles_B3hw))


def _gradient(height: int, width: int) -> UInt8Array:
    rows, columns = np.mgrid[0:height, 0:width] / (width - 1)
    picture = np.stack([rows, columns, (rows + columns) / 2], axis=2)
    return (picture * 255).astype(np.uint8)


def _strips(tiling: Tiling) -> dict[str, UInt8Array]:
    """Low pictures, as wide as two tiles reach with the padding of upstream."""
    # With their borders they fill tiles exactly: what is reflected is the same tiled and untiled.
    width = 2 * tiling.max_side - 2 * UPSTREAM_PADDING - 1 - 2 * tiling.border
    height = 48
    photo = photo_crop("chelsea", width)
    return {"chelsea": photo[:height], "gradient": _gradient(height, width)}


def _tiled(network: nn.Module, pixels: UInt8Array, tiling: Tiling) -> UInt8Array:
    batcher = new_batcher(CollectorRegistry())
    job, sink = submit(batcher, TorchUpscaler(network, tiling), pixels)
    assert job.plan.tile_count > 1
    run(batcher, job)
    return sink.picture


def _largest_difference(network: nn.Module, pixels: UInt8Array, tiling: Tiling) -> float:
    """Levels of 255 between the tiled and the untiled result, off the picture's own border."""
    border = tiling.border
    padded = np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="reflect")
    tile = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        larger = network(tile)[0].clamp(0.0, 1.0) * 255
    cut = border * 4
    untiled = larger[:, cut:-cut, cut:-cut].permute(1, 2, 0).numpy()
    # The tiled result was rounded to whole levels, which alone makes up to half of one.
    off = max(0.0, float(np.abs(_tiled(network, pixels, tiling) - untiled).max()) - 0.5)
    return off


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        # Its padding is all that it can see.
        ("realesr-animevideov3", 0.05),
        ("realesr-general-x4v3", 1.0),
        ("realesrgan-x4plus-anime", 1.0),
    ],
)
def test_tiles_meet_and_with_the_padding_of_upstream_do_not(
    entries: dict[str, Entry], name: str, allowed: float
) -> None:
    weights, descriptor = checked_weights(entries[name])
    network = build(recognise(weights), weights)
    advised = descriptor.tiles()
    # The smallest tiles that the advice allows: as many seams as there can be.
    tiling = replace(advised, max_side=advised.min_side)
    upstream = replace(tiling, padding=UPSTREAM_PADDING, feather=1)
    pictures = _strips(tiling)
    differences = {n: _largest_difference(network, p, tiling) for n, p in pictures.items()}
    assert max(differences.values()) < allowed, differences
    assert _largest_difference(network, pictures["chelsea"], upstream) > allowed


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_large_network_meets_within_one_level_too(entries: dict[str, Entry]) -> None:
    weights, descriptor = checked_weights(entries["realesrgan-x4plus"])
    network = build(recognise(weights), weights)
    advised = descriptor.tiles()
    tiling = replace(advised, max_side=advised.min_side)
    pixels = _strips(tiling)["chelsea"]
    assert _largest_difference(network, pixels, tiling) < 1.0
    upstream = replace(tiling, padding=UPSTREAM_PADDING, feather=1)
    assert _largest_difference(network, pixels, upstream) > 1.0
