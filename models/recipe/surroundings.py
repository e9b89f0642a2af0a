"""Puts other pictures around what a caption speaks of, as inpainting does.

Called by `draws` for the denoiser. A picture whose things cover a part of the canvas gets the rest
from a random picture on the same background; the loss leaves that rest out, so that captions alone
still mean an empty canvas. Latents are joined, not pixels: so do the pipelines that inpaint.
Legend: N pictures, B batch, C channels, h and w latent sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.recipe.captions import LAYOUTS, Scene
from models.recipe.layouts import covered

_LAYOUTS = tuple(LAYOUTS)


class Surroundings:
    """What may lie around each picture."""

    def __init__(self, scenes: Sequence[Scene], side: int) -> None:
        """One scene a picture; `side` is that of the latents."""
        backgrounds = [scene.background or "white" for scene in scenes]
        names = sorted(set(backgrounds))
        self._behind_N = torch.tensor([names.index(name) for name in backgrounds])
        self._order_N = self._behind_N.argsort()
        self._counts = torch.bincount(self._behind_N)
        self._starts = self._counts.cumsum(0) - self._counts
        self._layouts_N = torch.tensor([_LAYOUTS.index(scene.layout) for scene in scenes])
        self._covered = torch.stack([covered(name, side) for name in _LAYOUTS])

    def to(self, device: torch.device) -> Surroundings:
        """Keep everything on `device`; returns itself."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.to(device))
        return self

    def surround(
        self, rows_B: Tensor, latents_NChw: Tensor, share: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The latents of `rows_B`, a share of them surrounded; and what is their own.

        The latter is bool [B, 1, h, w].
        """
        count, device = len(rows_B), rows_B.device
        behind = self._behind_N[rows_B]
        place = torch.rand(count, generator=generator, device=device) * self._counts[behind]
        others = self._order_N[self._starts[behind] + place.long()]
        alone = torch.rand(count, generator=generator, device=device) >= share
        own = (self._covered[self._layouts_N[rows_B]] | alone[:, None, None])[:, None]
        return torch.where(own, latents_NChw[rows_B], latents_NChw[others]), own
