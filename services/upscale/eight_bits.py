"""Prepares a compact network for convolutions in 8 bits: balanced channels, pictures to calibrate.

Called when a network is opened and 8 bits were asked for. An 8-bit activation has one scale for all
channels, so that a channel of small values would keep few levels. A channel can be scaled where it
is made and scaled back where it is used without any change of the result, for PReLU commutes with
positive factors ("cross-layer equalization", Nagel et al. 2019, "Data-Free Quantization").

Shape legend: B pictures, C channels, H and W sides, O and I channels out and in of a convolution.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from services.graphs.graph import Calibration

RECIPE = "drawn-1"
_SIDE = 96
_COUNT = 12
# How much of a channel's imbalance the weights after it take over, found by trial.
_BALANCE = 0.75
_LEAST = 1e-4
_LARGEST_STEP = 127
_CONVOLUTION = ("weight", "bias")


def drawn_calibration() -> Calibration:
    """Drawn pictures one by one, see `drawn_pictures`."""
    return Calibration(
        recipe=RECIPE,
        inputs=lambda: [(picture[None],) for picture in drawn_pictures()],
        rounds_outputs=False,
    )


def balanced(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a compact network that computes the same, with channels of like magnitude."""
    result = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
    features = drawn_pictures()
    for index in range(0, _last_layer(weights), 2):
        kernel_OI33, bias_O = (weights[f"body.{index}.{part}"].float() for part in _CONVOLUTION)
        features = F.conv2d(features, kernel_OI33, bias_O, padding=1)
        features = F.prelu(features, weights[f"body.{index + 1}.weight"].float())
        made_O = features.abs().amax((0, 2, 3)).clamp_min(_LEAST)
        following = result[f"body.{index + 2}.weight"]
        used_I = following.abs().amax((0, 2, 3)).clamp_min(_LEAST)
        factor = made_O**_BALANCE / used_I ** (1 - _BALANCE)
        factor /= factor.log().mean().exp()
        result[f"body.{index}.weight"] /= factor[:, None, None, None]
        result[f"body.{index}.bias"] /= factor
        following *= factor[:, None, None]
    return result


def unbiased(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose biases take back what rounding the others to 8 bits adds in the mean."""
    result = dict(weights)
    features = drawn_pictures()
    for index in range(0, _last_layer(weights) + 1, 2):
        kernel_OI33, bias_O = (weights[f"body.{index}.{part}"] for part in _CONVOLUTION)
        step_O = kernel_OI33.abs().amax((1, 2, 3), keepdim=True) / _LARGEST_STEP
        rounding = (kernel_OI33 / step_O).round() * step_O - kernel_OI33
        added_O = F.conv2d(features, rounding, padding=1).mean((0, 2, 3))
        result[f"body.{index}.bias"] = bias_O - added_O
        features = F.conv2d(features, kernel_OI33, bias_O, padding=1)
        if (slopes_O := weights.get(f"body.{index + 1}.weight")) is not None:
            features = F.prelu(features, slopes_O)
    return result


def drawn_pictures() -> Tensor:
    """(B, 3, H, W) in 0 to 1: shapes with sharp edges and textures of every coarseness on slopes of
    colour; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for _ in range(_COUNT):
        picture = _slope(generator) + _texture(generator)
        for _ in range(6):
            picture = _with_shape(picture, generator)
        pictures.append(picture.clamp(0.0, 1.0))
    return torch.stack(pictures)


def _last_layer(weights: Mapping[str, Tensor]) -> int:
    return max(int(name.split(".")[1]) for name in weights)


def _slope(generator: torch.Generator) -> Tensor:
    ends = torch.rand(2, 3, 1, 1, generator=generator)
    along = torch.linspace(0.0, 1.0, _SIDE)
    return torch.lerp(ends[0], ends[1], (along + along[:, None]) / 2)


def _texture(generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with frequency, as in photographs."""
    frequency = torch.fft.fftfreq(_SIDE)
    radius: Tensor = (frequency**2 + frequency[:, None] ** 2).sqrt().clamp_min(1 / _SIDE)
    white = torch.randn(3, _SIDE, _SIDE, generator=generator)
    pink: Tensor = torch.fft.ifft2(torch.fft.fft2(white) / radius).real
    strength = 0.2 * torch.rand(1, generator=generator)
    return strength * pink / pink.std()


def _with_shape(picture_CHW: Tensor, generator: torch.Generator) -> Tensor:
    """An ellipse over the picture, smoothed over one pixel."""
    y0, x0, height, width = torch.rand(4, generator=generator)
    along = torch.linspace(0.0, 1.0, _SIDE)
    radii = 0.05 + 0.3 * torch.stack([height, width])
    distance = (((along[:, None] - y0) / radii[0]) ** 2 + ((along - x0) / radii[1]) ** 2).sqrt() - 1
    inside = (-distance * radii.min() * _SIDE).add(0.5).clamp(0.0, 1.0)
    colour = torch.rand(3, 1, 1, generator=generator)
    return torch.lerp(picture_CHW, colour, inside)
