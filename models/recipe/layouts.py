"""Lays things out on the canvas: small, in a corner, or several of them.

Called by `latents` and by the sheets of originals. A thing of half size is its view averaged over
2×2 pixels. Places are multiples of the latents' 8 pixels, as a thing looks the same there in every
latent. Knows no captions: `captions.LAYOUTS` says what each layout is called.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_HALF = 64
_NEAR, _MIDDLE, _FAR = 0, 32, 64
_PLACES: dict[str, tuple[tuple[int, int], ...]] = {
    "small": ((_MIDDLE, _MIDDLE),),
    "top left": ((_NEAR, _NEAR),),
    "top right": ((_NEAR, _FAR),),
    "bottom left": ((_FAR, _NEAR),),
    "bottom right": ((_FAR, _FAR),),
    "left": ((_MIDDLE, _NEAR),),
    "right": ((_MIDDLE, _FAR),),
    "two": ((_MIDDLE, _NEAR), (_MIDDLE, _FAR)),
    "three": ((_NEAR, _MIDDLE), (_FAR, _NEAR), (_FAR, _FAR)),
    "four": ((_NEAR, _NEAR), (_NEAR, _FAR), (_FAR, _NEAR), (_FAR, _FAR)),
}
"""Row and column of the upper left corner of each thing, in pixels."""


def lay_out(view_4HW: Tensor, layout: str) -> Tensor:
    """A premultiplied view, float32 [4, 128, 128], laid out; "whole" leaves it as it is."""
    if layout == "whole":
        return view_4HW
    half = F.avg_pool2d(view_4HW[None], 2)[0]
    canvas = torch.zeros_like(view_4HW)
    for top, left in _PLACES[layout]:
        canvas[:, top : top + _HALF, left : left + _HALF] = half
    return canvas


def covered(layout: str, side: int) -> Tensor:
    """Where on a canvas of `side` × `side` the things of a layout lie, bool [side, side]."""
    if layout == "whole":
        return torch.ones(side, side, dtype=torch.bool)
    mask = torch.zeros(side, side, dtype=torch.bool)
    unit = 2 * _HALF // side
    for top, left in _PLACES[layout]:
        rows, columns = (slice(start // unit, (start + _HALF) // unit) for start in (top, left))
        mask[rows, columns] = True
    return mask
