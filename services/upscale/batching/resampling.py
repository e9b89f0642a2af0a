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

from services.upscale.batching.tiling import Axis, Span

_LOBES = 3
_BLOCK = 64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Block:
    """Some output pixels as weighted sums of consecutive input pixels."""

    first: int
    weights: Tensor
    """(output pixels, input pixels)."""


def crop_or_reduce(tile_CHW: Tensor, axis: Axis, span: Span, scale: int, *, dim: int) -> Tensor:
    """Take the span's output pixels out of a tile along `dim`, 1 or 2.

    The tile has `axis.side` × `scale` pixels along it.
    """
    if axis.out_length == axis.length * scale:
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
