"""Puts a picture together from its tiles, a band of rows at a time.

Owned by the batcher, one for each running job. Tiles come row by row from left to right. Where two
cores overlap they are blended with smooth weights that add up to one. Held are one band, the
overlap with the tile to the left and that with the band above, all in 8 bits: memory grows with the
width of the picture, not with its area.

Shape legend: H and W sides in output pixels, C channels of the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.upscale.batching.resampling import cut_or_reduced
from services.upscale.batching.tiling import Span, TilePlan
from services.upscale.model import UInt8Array


class Assembly:
    """One picture on its way from tiles to bands."""

    def __init__(self, plan: TilePlan, *, scale: int, channel_count: int) -> None:
        """`scale` is the network's, `channel_count` the picture's."""
        self._plan = plan
        self._scale = scale
        self._channel_count = channel_count
        self._next = 0
        self._left: Tensor | None = None
        self._above: Tensor | None = None
        self._below: Tensor | None = None
        self._band: Tensor | None = None

    def add(self, tile_HWC: Tensor) -> UInt8Array | None:
        """Take the next tile, uint8, which is written to; returns the band that it completes.

        A band is (h, W, C); bands come from top to bottom and do not overlap.
        """
        row_index, column_index = divmod(self._next, len(self._plan.columns.spans))
        row, column = self._plan.rows.spans[row_index], self._plan.columns.spans[column_index]
        self._next += 1
        if column_index == 0:
            self._begin_band(row)
        cut = cut_or_reduced(tile_HWC, self._plan, row, column, self._scale)
        self._place(self._joined_left(cut, column), row, column)
        if column_index < len(self._plan.columns.spans) - 1:
            return None
        return self._end_band()

    def _begin_band(self, row: Span) -> None:
        width = self._plan.columns.out_length
        height = row.out_end - row.overlap - row.out_start
        self._band = torch.empty((height, width, self._channel_count), dtype=torch.uint8)
        self._below = torch.empty((row.overlap, width, self._channel_count), dtype=torch.uint8)
        self._left = None

    def _joined_left(self, tile_HWC: Tensor, column: Span) -> Tensor:
        """Blend with the tile to the left, and keep the overlap with the one to the right."""
        if self._left is not None:
            width = self._left.shape[1]
            tile_HWC[:, :width] = _blended(self._left, tile_HWC[:, :width], _ramp(width)[:, None])
        kept = tile_HWC.shape[1] - column.overlap
        self._left = tile_HWC[:, kept:].clone() if column.overlap else None
        return tile_HWC[:, :kept]

    def _place(self, tile_HWC: Tensor, row: Span, column: Span) -> None:
        """Blend with the band above, and write rows that are final into the band."""
        assert self._band is not None
        assert self._below is not None
        columns = slice(column.out_start, column.out_end - column.overlap)
        if self._above is not None:
            height = self._above.shape[0]
            above, weight = self._above[:, columns], _ramp(height)[:, None, None]
            tile_HWC[:height] = _blended(above, tile_HWC[:height], weight)
        final = tile_HWC.shape[0] - row.overlap
        self._below[:, columns] = tile_HWC[final:]
        self._band[:, columns] = tile_HWC[:final]

    def _end_band(self) -> UInt8Array:
        assert self._band is not None
        band: UInt8Array = self._band.numpy()
        self._above = self._below if self._below is not None and self._below.numel() else None
        self._band = None
        return band


def _blended(earlier: Tensor, later: Tensor, weight: Tensor) -> Tensor:
    return torch.lerp(earlier.float(), later.float(), weight).round_().to(torch.uint8)


def _ramp(width: int) -> Tensor:
    """Weights of the later tile over an overlap: from 0 to 1, level at both ends."""
    t = (torch.arange(width) + 0.5) / width
    return t * t * (3.0 - 2.0 * t)
