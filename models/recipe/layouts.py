"""Lays things out on the canvas: small, in a corner, or several of them.

Called by `latents` and by the sheets of originals. A thing of half size is its view averaged over
2×2 pixels. Knows no captions: `captions.LAYOUTS` says what each layout is called.
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

_HALF = 64
_NEAR, _MIDDLE, _FAR = 3, 32, 61
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
_JITTER_PX = 3


def lay_out(view_4HW: Tensor, layout: str, random: Random) -> Tensor:
    """A premultiplied view, float32 [4, 128, 128], laid out; "whole" leaves it as it is."""
    if layout == "whole":
        return view_4HW
    half = F.avg_pool2d(view_4HW[None], 2)[0]
    canvas = torch.zeros_like(view_4HW)
    for row, column in _PLACES[layout]:
        top = row + random.randint(-_JITTER_PX, _JITTER_PX)
        left = column + random.randint(-_JITTER_PX, _JITTER_PX)
        area = canvas[:, top : top + _HALF, left : left + _HALF]
        # Premultiplied "over": neighbours may overlap by their empty margins.
        area.copy_(half + area * (1.0 - half[3:] / 255.0))
    return canvas
