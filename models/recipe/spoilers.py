"""Ways to ruin a drawing that leave its colours and roughly its outline.

Called by `judge`: what a half-trained model paints looks like this, and must not count as right.
Every function takes one premultiplied RGBA view, float32 [4, H, W] in 0 to 255, and returns one.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

Spoiler = Callable[[Tensor, Random], Tensor]


def blur(picture_CHW: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, `sigma` in pixels, edges replicated; any number of channels."""
    if sigma <= 0.0:
        return picture_CHW
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum()
    rows = F.pad(picture_CHW[:, None], (radius, radius, 0, 0), mode="replicate")
    rows = F.conv2d(rows, kernel[None, None, None, :])
    columns = F.pad(rows, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(columns, kernel[None, None, :, None])[:, 0]


def soft(view: Tensor, random: Random) -> Tensor:
    """Everything blurred by 2 to 6 pixels."""
    return blur(view, random.uniform(2.0, 6.0))


def smeared_inside(view: Tensor, random: Random) -> Tensor:
    """Outline kept sharp, inner detail blurred away."""
    smooth = blur(view, random.uniform(3.0, 10.0))
    colours = smooth[:3] / smooth[3:].clamp(min=1.0)
    return torch.cat([colours * view[3:], view[3:]])


def silhouette(view: Tensor, random: Random) -> Tensor:
    """The outline, filled with the mean colour."""
    colour = view[:3].sum((1, 2)) / view[3:].sum().clamp(min=1.0)
    outline = blur(view[3:], random.uniform(0.0, 2.0))
    return torch.cat([colour[:, None, None] * outline, outline])


def mosaic(view: Tensor, random: Random) -> Tensor:
    """Averaged over coarse cells, with hard or soft borders."""
    cell = random.choice((6, 8, 12, 16))
    size = view.shape[-1] // cell
    coarse = F.adaptive_avg_pool2d(view[None], size)
    mode = random.choice(("nearest", "bilinear"))
    return F.interpolate(coarse, size=view.shape[-2:], mode=mode)[0]


def shuffled(view: Tensor, random: Random) -> Tensor:
    """Tiles of the middle in random order."""
    tile = random.choice((16, 24, 32))
    count = 96 // tile
    result = view.clone()
    places = [(16 + tile * r, 16 + tile * c) for r in range(count) for c in range(count)]
    for (top, left), (y, x) in zip(places, random.sample(places, len(places)), strict=True):
        result[:, top : top + tile, left : left + tile] = view[:, y : y + tile, x : x + tile]
    return result


def melted(view: Tensor, random: Random) -> Tensor:
    """Shapes pulled about by up to a seventh of the picture, in waves as coarse as its parts."""
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    coarse = torch.randn(1, 2, 7, 7, generator=generator) * random.uniform(0.08, 0.16)
    waves = F.interpolate(coarse, size=view.shape[-2:], mode="bicubic")[0].permute(1, 2, 0)
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 4, *view.shape[-2:]], align_corners=False)
    return F.grid_sample(view[None], identity + waves, align_corners=False)[0].clamp(0.0, 255.0)


SPOILERS: tuple[Spoiler, ...] = (soft, soft, smeared_inside, silhouette, mosaic, shuffled, melted)
