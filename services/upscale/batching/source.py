"""The picture that a job enlarges, and the tiles that are cut from it.

Owned by a job. Networks know three colours: gray is repeated, and alpha is a picture of its own, so
that a tile has one layer or two. Alpha that is opaque everywhere costs nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.upscale.batching.tiling import TilePlan
from services.upscale.model import UInt8Array


class Source:
    """An 8-bit picture (H, W, C): gray, gray and alpha, RGB, or RGB and alpha."""

    def __init__(self, pixels_HWC: UInt8Array) -> None:
        self._pixels = pixels_HWC
        self.channel_count = pixels_HWC.shape[2]
        self._has_alpha = self.channel_count in (2, 4)
        self._alpha_varies = self._has_alpha and not bool((pixels_HWC[:, :, -1] == 255).all())
        self.layer_count = 2 if self._alpha_varies else 1
        """Network inputs for each tile."""

    def layers(self, plan: TilePlan, index: int) -> Tensor:
        """Network inputs (layers, 3, h, w) of a tile, float32 in 0 to 1, reflected at the edges."""
        row_index, column_index = divmod(index, len(plan.columns.spans))
        rows, columns = plan.rows, plan.columns
        ys = _reflected(rows.spans[row_index].start, rows.side, rows.length)
        xs = _reflected(columns.spans[column_index].start, columns.side, columns.length)
        tile = torch.from_numpy(self._pixels[ys[:, None], xs[None, :]]).permute(2, 0, 1)
        colour = tile[:-1] if self._has_alpha else tile
        inputs = [colour, tile[-1:]] if self._alpha_varies else [colour]
        stacked = torch.stack([each.expand(3, -1, -1) for each in inputs])
        return stacked.to(torch.float32).div_(255.0)

    def joined(self, larger_LHW3: Tensor) -> Tensor:
        """The picture's channels (H, W, C) from the enlarged layers of a tile, uint8."""
        colour = larger_LHW3[0]
        parts = [colour if self.channel_count >= 3 else _gray(colour)]
        if self._alpha_varies:
            parts.append(_gray(larger_LHW3[1]))
        elif self._has_alpha:
            parts.append(torch.full_like(colour[:, :, :1], 255))
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _gray(picture_HW3: Tensor) -> Tensor:
    # Rounded to the nearest; 16 bits hold three levels.
    total = picture_HW3.sum(dim=2, keepdim=True, dtype=torch.int16)
    return ((total + 1) // 3).to(torch.uint8)


def _reflected(start: int, side: int, length: int) -> npt.NDArray[np.intp]:
    """Indices of `side` pixels from `start` on, mirrored at both ends without repeating them."""
    if length == 1:
        return np.zeros(side, np.intp)
    period = 2 * (length - 1)
    indices = np.abs(np.arange(start, start + side)) % period
    return np.where(indices >= length, period - indices, indices)
