"""Rough pictures of unfinished latents, by a small polynomial from latent channels to colours.

A family fits a `LatentPreview` to its autoencoder once and the batcher draws through it. It costs
microseconds where the decoder costs the time of several steps, and shows colours and outlines,
not detail. Squares and products of channels are in it because bright colours saturate: on the
embedded model they bring the error from 40 levels of 255 to 29.

Shape legend: B rows, C latent channels, F features, h and w latent sides, H and W picture sides.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from services.diffusion.model import UInt8Array

ENLARGEMENT = 4

_PICTURE_COUNT = 16
_SEED = 0
# Shares of white and of black among the colours: pictures have more of both than chance would.
_WHITE, _BLACK = 0.25, 0.1
# Keeps the map small along directions of latent space that the pictures do not reach.
_RIDGE = 1e-3


class LatentPreview:
    """The map `rgb = features(latent) @ weights`, colours in [-1, 1]."""

    def __init__(self, weights_F3: Tensor) -> None:
        """Use a fitted map; see `fit`."""
        self._weights_F3 = weights_F3

    def to(self, device: str) -> LatentPreview:
        """The same map on another torch device."""
        return LatentPreview(self._weights_F3.to(device))

    def colours(self, latents_BChw: Tensor) -> Tensor:
        """Colours (B, 3, h, w) in [-1, 1]."""
        rgb_Bhw3 = _features(latents_BChw) @ self._weights_F3
        return rgb_Bhw3.movedim(-1, 1).clamp(-1.0, 1.0)

    def draw(self, latents_BChw: Tensor) -> UInt8Array:
        """Pictures (B, h × 4, w × 4, 3), smoothly enlarged."""
        pixels = (self.colours(latents_BChw) * 127.5 + 127.5).round().to(torch.uint8)
        return np.stack([_enlarged(small) for small in pixels.movedim(1, -1).cpu().numpy()])


def _enlarged(small_hw3: UInt8Array) -> UInt8Array:
    # Pillow, because torch would spread so little work over threads and wait for them.
    height, width, _ = small_hw3.shape
    size = (ENLARGEMENT * width, ENLARGEMENT * height)
    picture = Image.fromarray(np.ascontiguousarray(small_hw3))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


@torch.no_grad()
def fit(encode: Callable[[Tensor], Tensor], *, side: int) -> LatentPreview:
    """Fit the map by least squares to what `encode` makes of coloured pictures.

    `encode` takes pictures (B, 3, H, W) in [-1, 1] and returns latents (B, C, h, w) as the
    denoiser sees them. `side` is H and W. Deterministic: the pictures come from a fixed seed.
    """
    pictures = _coloured_pictures(side)
    latents = encode(pictures).float()
    colours = F.interpolate(pictures, size=latents.shape[-2:], mode="area")
    inputs = _features(latents).flatten(0, -2).double()
    outputs = colours.movedim(1, -1).flatten(0, -2).double()
    damping = _RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.double)
    solution = torch.linalg.solve(inputs.T @ inputs + damping, inputs.T @ outputs)
    return LatentPreview(solution.float())


def _features(latents_BChw: Tensor) -> Tensor:
    """One, the channels, and all products of two of them: (B, h, w, F)."""
    channels = latents_BChw.movedim(1, -1)
    first, second = torch.triu_indices(channels.shape[-1], channels.shape[-1])
    products = channels[..., first] * channels[..., second]
    return torch.cat([torch.ones_like(channels[..., :1]), channels, products], dim=-1)


def _coloured_pictures(side: int) -> Tensor:
    """Patches of random colours, half of them blurred into each other: (B, 3, side, side)."""
    generator = torch.Generator().manual_seed(_SEED)
    count = _PICTURE_COUNT // 2
    sharp = F.interpolate(_cells(count, 2, generator), size=(side, side), mode="nearest")
    blurred = F.interpolate(_cells(count, 3, generator), size=(side, side), mode="bilinear")
    return torch.cat([sharp, blurred])


def _cells(count: int, cells: int, generator: torch.Generator) -> Tensor:
    """Random colours in [-1, 1], (count, 3, cells, cells), some of them white or black."""
    colours = torch.rand((count, 3, cells, cells), generator=generator) * 2.0 - 1.0
    kind = torch.rand((count, 1, cells, cells), generator=generator)
    colours = torch.where(kind < _WHITE, 1.0, colours)
    return torch.where(kind > 1.0 - _BLACK, -1.0, colours)
