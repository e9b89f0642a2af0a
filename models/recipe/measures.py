"""Figures about pictures: how far from the originals, how varied, of which colour.

Called by `evaluate`. Pure functions of pictures and features. Legend: N pictures, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.recipe.colours import main_colour, nearest_colour

CORNER_PX = 12
PAPER_DISTANCE = 24
"""Pixels nearer to white than this, of 255 in any channel, are paper and not the thing."""


def as_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1], as the judge wants them."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def as_bytes(pictures: Tensor) -> np.ndarray:
    """The inverse of `as_tensor`."""
    scaled = ((pictures + 1.0) * 127.5).round().clamp(0.0, 255.0).byte()
    return np.asarray(scaled.permute(0, 2, 3, 1))


def frechet_distance(first_NF: Tensor, second_NF: Tensor) -> float:
    """Between Gaussians fitted to two sets of features (Dowson & Landau 1982); 0 if they agree."""
    means = [features.double().mean(0) for features in (first_NF, second_NF)]
    a, b = (torch.cov(features.double().T) for features in (first_NF, second_NF))
    root = _root(a)
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0.0).sqrt().sum()
    apart = (means[0] - means[1]).square().sum()
    return round(float(apart + a.trace() + b.trace() - 2.0 * cross), 3)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    return root


def rms_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Root mean square of 8-bit differences, one figure a picture: [N]."""
    squares = np.square(first.astype(np.float64) - second.astype(np.float64))
    return np.asarray(np.sqrt(squares.mean(axis=(1, 2, 3))))


def thing_colours(pictures: np.ndarray) -> list[str]:
    """Name of the main colour of the thing on each white page: uint8 [N, H, W, 3]."""
    names = []
    for picture in torch.from_numpy(pictures):
        rgb = picture.permute(2, 0, 1).float()
        opacity = ((255.0 - rgb).amax(0) > PAPER_DISTANCE).float()
        names.append(nearest_colour(main_colour(rgb / 255.0, opacity)))
    return names


def corner_colours(pictures: np.ndarray) -> np.ndarray:
    """Median colour of the four corners: uint8 [N, H, W, 3] to float64 [N, 3]."""
    near, far = slice(None, CORNER_PX), slice(-CORNER_PX, None)
    corners = [pictures[:, y, x] for y in (near, far) for x in (near, far)]
    pixels = np.stack(corners, axis=1).reshape(len(pictures), -1, 3)
    colours: np.ndarray = np.median(pixels, axis=1)
    return colours


def share(flags: Sequence[bool]) -> float:
    """Part of the flags that are set, from 0 to 1; 0 of none."""
    return round(sum(flags) / len(flags), 4) if flags else 0.0
