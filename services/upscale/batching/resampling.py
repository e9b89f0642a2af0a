"""Reduces a tile's result from the network's scale to the one that was asked for.

Called by the assembly for each tile. The filter is Lanczos with three lobes, widened by the
reduction so that nothing aliases, as in Pillow's `resize`; it is centred on the pixels of the whole
picture, so that tiles meet exactly. At the network's own scale it is the identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from services.upscale.batching.tiling import Axis, Span, TilePlan

_LOBES = 3
_BLOCK = 64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Block:
    """Some output pixels as weighted sums of consecutive input pixels."""

    first: int
    weights: Tensor
    """(output pixels, input pixels)."""


def cut_or_reduced(tile_HWC: Tensor, plan: TilePlan, row: Span, column: Span, scale: int) -> Tensor:
    """The output pixels of a tile, uint8; at the network's own scale they are a part of it.

    The tile has its source's sides times `scale`.
    """
    if _is_whole(plan.rows, scale) and _is_whole(plan.columns, scale):
        y, x = row.out_start - row.start * scale, column.out_start - column.start * scale
        height, width = row.out_end - row.out_start, column.out_end - column.out_start
        return tile_HWC[y : y + height, x : x + width]
    planes_CHW = tile_HWC.permute(2, 0, 1).to(torch.float32)
    reduced = _along(planes_CHW, plan.rows, row, scale, dim=1)
    reduced = _along(reduced, plan.columns, column, scale, dim=2)
    return reduced.round_().clamp_(0.0, 255.0).to(torch.uint8).permute(1, 2, 0)


def _is_whole(axis: Axis, scale: int) -> bool:
    return axis.out_length == axis.length * scale


def _along(tile_CHW: Tensor, axis: Axis, span: Span, scale: int, *, dim: int) -> Tensor:
    """Take the span's output pixels along `dim`, 1 or 2."""
    if _is_whole(axis, scale):
        first = span.out_start - span.start * scale
        return tile_CHW.narrow(dim, first, span.out_end - span.out_start)
    blocks = _blocks(axis.length, axis.out_length, axis.side, span, scale)
    parts = []
    for block in blocks:
        part = tile_CHW.narrow(dim, block.first, block.weights.shape[1])
        if dim == 1:
            parts.append(torch.einsum("oi,ciw->cow", block.weights, part))
        else:
            parts.append(part @ block.weights.T)
    return torch.cat(parts, dim=dim)


@lru_cache(maxsize=256)
def _blocks(length: int, out_length: int, side: int, span: Span, scale: int) -> tuple[_Block, ...]:
    ratio = length * scale / out_length
    outputs = torch.arange(span.out_start, span.out_end, dtype=torch.float64)
    centres = (outputs + 0.5) * ratio - span.start * scale
    blocks = []
    for some in torch.split(centres, _BLOCK):
        reach = _LOBES * ratio
        first = max(0, math.floor(float(some[0]) - reach))
        last = min(side * scale, math.ceil(float(some[-1]) + reach))
        inputs = torch.arange(first, last, dtype=torch.float64) + 0.5
        weights = _lanczos((inputs[None, :] - some[:, None]) / ratio)
        weights /= weights.sum(dim=1, keepdim=True)
        blocks.append(_Block(first=first, weights=weights.float()))
    return tuple(blocks)


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < _LOBES, torch.sinc(x) * torch.sinc(x / _LOBES), 0.0)
