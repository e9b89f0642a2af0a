"""Where the tiles of a picture are: the plan, without any pixel.

Called when a request is resolved. Along each axis the picture is covered by spans of one length;
of the lengths allowed the one is chosen that computes the fewest pixels. Neighbouring spans overlap
by twice the padding, where both results are thrown away up to their cores, and by the width of the
feather, where the cores are blended. All spans have the same length: a graph sees few shapes, and
tiles of different pictures fit into one batch.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from services.upscale.model import Tiling


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A tile along one axis, in pixels."""

    start: int
    """First source pixel that the tile shows; below 0 where it is reflected."""
    out_start: int
    """First output pixel that the tile contributes to."""
    out_end: int
    """One past the last of these."""
    overlap: int
    """Output pixels before `out_end` that the next tile contributes to as well; 0 for the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """The spans along one axis, first to last. They cover the output without a gap."""

    length: int
    """Source pixels."""
    out_length: int
    """Output pixels."""
    side: int
    """Source pixels of every tile."""
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TilePlan:
    """All tiles of a picture, row by row."""

    rows: Axis
    columns: Axis

    @property
    def tile_count(self) -> int:
        """Number of tiles."""
        return len(self.rows.spans) * len(self.columns.spans)

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Height and width of every tile in source pixels."""
        return self.rows.side, self.columns.side

    @property
    def tile_pixel_count(self) -> int:
        """Source pixels of a tile."""
        return self.rows.side * self.columns.side


def plan_tiles(
    *, width: int, height: int, out_width: int, out_height: int, tiling: Tiling
) -> TilePlan:
    """Cover a picture of `width` × `height` source pixels. All sides are at least 1."""
    return TilePlan(
        rows=plan_axis(height, out_height, tiling), columns=plan_axis(width, out_width, tiling)
    )


def plan_axis(length: int, out_length: int, tiling: Tiling) -> Axis:
    """Cover `length` source pixels that become `out_length`."""
    padded = length + 2 * tiling.border
    sides = range(tiling.side_step, tiling.max_side + 1, tiling.side_step)
    counts = {side: _count(padded, side, tiling) for side in sides}
    possible = [side for side, count in counts.items() if count]
    # Of equal costs the larger side: fewer calls, fewer seams.
    side = min(possible, key=lambda side: (side * counts[side], -side))
    starts = _starts(padded, side, counts[side], tiling)
    return Axis(
        length=length,
        out_length=out_length,
        side=side,
        spans=_spans(starts, side, length, out_length, tiling),
    )


def _count(padded: int, side: int, tiling: Tiling) -> int:
    """Tiles of `side` that cover `padded` pixels; 0 where none can."""
    if side >= padded:
        return 1
    stride = side - 2 * tiling.padding - tiling.feather
    return 1 + math.ceil((padded - side) / stride) if stride > 0 else 0


def _starts(padded: int, side: int, count: int, tiling: Tiling) -> list[int]:
    """First pixels of `count` tiles, spread evenly; negative ones are reflected."""
    if count == 1:
        return [-tiling.border - (side - padded) // 2]
    return [(padded - side) * i // (count - 1) - tiling.border for i in range(count)]


def _spans(
    starts: list[int], side: int, length: int, out_length: int, tiling: Tiling
) -> tuple[Span, ...]:
    scale = out_length / length
    # Between tiles the overlap beyond the paddings is at least the feather; the blend is in its
    # middle.
    cuts = []
    for before, after in itertools.pairwise(starts):
        middle = (before + side + after) / 2
        low = max(0.0, middle - tiling.feather / 2)
        high = min(float(length), middle + tiling.feather / 2)
        cuts.append((_out_pixel(low, scale), _out_pixel(high, scale)))
    begins = [0, *(low for low, _ in cuts)]
    ends = [*(high for _, high in cuts), out_length]
    overlaps = [*(high - low for low, high in cuts), 0]
    return tuple(
        Span(start=start, out_start=begin, out_end=end, overlap=overlap)
        for start, begin, end, overlap in zip(starts, begins, ends, overlaps, strict=True)
    )


def _out_pixel(position: float, scale: float) -> int:
    """First output pixel whose centre is at or beyond a source position."""
    return math.ceil(position * scale - 0.5)
