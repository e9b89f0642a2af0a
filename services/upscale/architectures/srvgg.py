"""The compact network of Real-ESRGAN: a stack of convolutions at input size, then a shuffle.

Built by `recognition` from a state dict. Module names are those of the published weights
(`SRVGGNetCompact`), so that these load without renaming.

Source: Wang et al. 2021, "Real-ESRGAN", the `realesr-*` models of its repository.
Shape legend: B pictures, C colour channels, H and W sides.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class SrvggShape:
    """What tells one compact network from another."""

    channel_count: int
    """Colour channels in and out."""
    feature_count: int
    body_conv_count: int
    """Convolutions between the first and the last."""
    scale: int

    @property
    def receptive_radius(self) -> int:
        """Input pixels on each side that an output pixel depends on: one for each convolution."""
        return self.body_conv_count + 2

    @property
    def macs_per_pixel(self) -> int:
        """Multiply-accumulates for each input pixel."""
        features = self.feature_count
        last = self.channel_count * self.scale**2
        return 9 * features * (self.channel_count + features * self.body_conv_count + last)


class Srvgg(nn.Module):
    """Enlarges pictures (B, C, H, W) in 0 to 1 into (B, C, H × scale, W × scale), unclamped."""

    def __init__(self, shape: SrvggShape) -> None:
        super().__init__()
        self.scale = shape.scale
        features = shape.feature_count
        widths = [shape.channel_count, *[features] * (shape.body_conv_count + 1)]
        layers: list[nn.Module] = []
        for width in widths[:-1]:
            layers += [nn.Conv2d(width, features, 3, padding=1), nn.PReLU(features)]
        layers.append(nn.Conv2d(features, shape.channel_count * shape.scale**2, 3, padding=1))
        self.body = nn.ModuleList(layers)
        self.upsampler = nn.PixelShuffle(shape.scale)

    def forward(self, picture_BCHW: Tensor) -> Tensor:
        """Add what was learnt to the picture in larger squares."""
        features = picture_BCHW
        for layer in self.body:
            features = layer(features)
        # Before the shuffle, where each is added to fewer and wider rows.
        squares = picture_BCHW.repeat_interleave(self.scale**2, dim=1)
        larger: Tensor = self.upsampler(features + squares)
        return larger
