"""Paints the main colour of a drawing another, and tells which colour a picture's thing has.

Called by `latents` for captions such as "a blue car", and by `evaluate` to check them. Works in
OKLab (Ottosson 2020), where turning the hue keeps how light a colour looks. Pixels far from the
main hue (a leaf on an apple) keep their colour. Legend: H and W pixels, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.recipe.captions import BACKGROUNDS, OBJECT_COLOURS

MIN_SHARE = 0.4
"""A drawing has a main colour if at least so much of it is of about one hue."""
LEAST_CHROMA = 0.05
HUE_WIDTH = 0.9
"""Radians to either side of the main hue within which pixels belong to it."""

_TO_LMS = torch.tensor(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = torch.tensor(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def to_oklab(rgb_3HW: Tensor) -> Tensor:
    """sRGB from 0 to 1 to OKLab: lightness from 0 to 1, and two colour axes."""
    linear = torch.where(rgb_3HW <= 0.04045, rgb_3HW / 12.92, ((rgb_3HW + 0.055) / 1.055) ** 2.4)
    lms = torch.einsum("ij,jhw->ihw", _TO_LMS, linear).clamp(min=0.0) ** (1.0 / 3.0)
    return torch.einsum("ij,jhw->ihw", _TO_LAB, lms)


def from_oklab(lab_3HW: Tensor) -> Tensor:
    """OKLab to sRGB, clipped to 0 to 1."""
    lms = torch.einsum("ij,jhw->ihw", torch.linalg.inv(_TO_LAB), lab_3HW) ** 3
    linear = torch.einsum("ij,jhw->ihw", torch.linalg.inv(_TO_LMS), lms).clamp(0.0, 1.0)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


@dataclass(frozen=True, kw_only=True, slots=True)
class MainColour:
    """The commonest hue of a drawing, in radians, its mean lightness and chroma, and its share."""

    hue: float
    lightness: float
    chroma: float
    share: float


def main_colour(rgb_3HW: Tensor, opacity_HW: Tensor) -> MainColour:
    """Of straight-alpha colours from 0 to 1, weighted by opacity from 0 to 1."""
    lab = to_oklab(rgb_3HW)
    chroma, hue = torch.hypot(lab[1], lab[2]), torch.atan2(lab[2], lab[1])
    weight = opacity_HW * chroma
    bins = 36
    places = ((hue + math.pi) / (2 * math.pi) * bins).long().clamp(max=bins - 1)
    histogram = torch.zeros(bins).index_add_(0, places.flatten(), weight.flatten())
    smooth = histogram + 0.5 * (histogram.roll(1) + histogram.roll(-1))
    centre = (float(smooth.argmax()) + 0.5) / bins * 2 * math.pi - math.pi
    near = _belongs(hue, chroma, centre) * opacity_HW
    total = float(near.sum()) + 1e-6
    mean_a, mean_b = (float((near * axis).sum()) / total for axis in (lab[1], lab[2]))
    return MainColour(
        hue=math.atan2(mean_b, mean_a),
        lightness=float((near * lab[0]).sum()) / total,
        chroma=math.hypot(mean_a, mean_b),
        share=total / (float(opacity_HW.sum()) + 1e-6),
    )


def _belongs(hue_HW: Tensor, chroma_HW: Tensor, centre: float) -> Tensor:
    """Soft mask of the pixels that are of one hue and not grey."""
    distance = torch.remainder(hue_HW - centre + math.pi, 2 * math.pi) - math.pi
    close = ((HUE_WIDTH - distance.abs()) / 0.3).clamp(0.0, 1.0)
    return close * ((chroma_HW - 0.5 * LEAST_CHROMA) / LEAST_CHROMA).clamp(0.0, 1.0)


def _target(name: str) -> MainColour:
    rgb = torch.tensor(BACKGROUNDS[name]).float()[:, None, None] / 255.0
    return main_colour(rgb, torch.ones(1, 1))


TARGETS = {name: _target(name) for name in OBJECT_COLOURS}


def paint(view_4HW: Tensor, name: str) -> Tensor:
    """A premultiplied view, 0 to 255, with its main colour turned into the named one.

    Lightness bends so that the main colour becomes as light as the target's, black stays black and
    white stays white.
    """
    opacity = view_4HW[3] / 255.0
    rgb = (view_4HW[:3] / view_4HW[3:].clamp(min=1.0)).clamp(0.0, 1.0)
    old, new = main_colour(rgb, opacity), TARGETS[name]
    lab = to_oklab(rgb)
    chroma, hue = torch.hypot(lab[1], lab[2]), torch.atan2(lab[2], lab[1])
    mask = _belongs(hue, chroma, old.hue)
    wanted = old.lightness + 0.7 * (new.lightness - old.lightness)
    power = math.log(wanted) / math.log(min(0.97, max(0.05, old.lightness)))
    stretch = min(1.8, max(0.6, new.chroma / max(old.chroma, 1e-3)))
    turned = hue + (new.hue - old.hue)
    painted = torch.stack(
        [
            lab[0].clamp(min=0.0) ** power,
            chroma * stretch * turned.cos(),
            chroma * stretch * turned.sin(),
        ]
    )
    return torch.cat([from_oklab(lab + mask * (painted - lab)) * view_4HW[3:], view_4HW[3:]])


def natural_colour(view_4HW: Tensor) -> str | None:
    """Name of a premultiplied view's main colour, or None if it has no single one."""
    rgb = (view_4HW[:3] / view_4HW[3:].clamp(min=1.0)).clamp(0.0, 1.0)
    main = main_colour(rgb, view_4HW[3] / 255.0)
    return nearest_colour(main) if main.share >= MIN_SHARE else None


def nearest_colour(main: MainColour) -> str:
    """The object colour that is closest in OKLab."""

    def distance(name: str) -> float:
        target = TARGETS[name]
        return math.hypot(
            main.lightness - target.lightness,
            main.chroma * math.cos(main.hue) - target.chroma * math.cos(target.hue),
            main.chroma * math.sin(main.hue) - target.chroma * math.sin(target.hue),
        )

    return min(TARGETS, key=distance)
