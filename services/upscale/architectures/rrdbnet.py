"""ESRGAN's generator: residual-in-residual dense blocks, then two doublings.

Built by `recognition` from a state dict. Module names are those of the published weights
(`RRDBNet`), so that these load without renaming.

Source: Wang et al. 2018, "ESRGAN"; Wang et al. 2021, "Real-ESRGAN" (scale 2 and 1 by first folding
pixels into channels).
Shape legend: B pictures, C colour channels, H and W sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_RESIDUAL_SCALE = 0.2
_UPSAMPLING = 4
"""What the two doublings make of a side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RrdbShape:
    """What tells one network from another."""

    channel_count: int
    """Colour channels in and out."""
    feature_count: int
    growth_count: int
    """Features that each convolution of a dense block adds."""
    block_count: int
    scale: int
    """4, 2 or 1."""

    @property
    def folding(self) -> int:
        """Side of the squares of pixels that become channels of one."""
        return _UPSAMPLING // self.scale

    @property
    def receptive_radius(self) -> int:
        """Input pixels on each side that an output pixel may depend on.

        15 convolutions a block and two more at folded size, then four that reach half or a quarter
        of a folded pixel. Hardly anything comes from that far, see the seam tests.
        """
        return (15 * self.block_count + 4) * self.folding

    @property
    def macs_per_pixel(self) -> int:
        """Multiply-accumulates for each input pixel."""
        features, growth = self.feature_count, self.growth_count
        dense = sum((features + i * growth) * (growth if i < 4 else features) for i in range(5))
        folded_in = self.channel_count * self.folding**2
        at_folded_size = features * folded_in + 3 * self.block_count * dense + features**2
        enlarged = 4 * features**2 + 16 * (2 * features**2 + features * self.channel_count)
        return 9 * (at_folded_size + enlarged) // self.folding**2


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees what all before it made."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(features + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(features + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(features + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, F.leaky_relu(conv(seen), 0.2)), dim=1)
        learnt: Tensor = self.conv5(seen)
        return learnt * _RESIDUAL_SCALE + x


class _ResidualBlock(nn.Module):
    """Three dense blocks and a way around them."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(features, growth)
        self.rdb2 = _DenseBlock(features, growth)
        self.rdb3 = _DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        learnt: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return learnt * _RESIDUAL_SCALE + x


class Rrdbnet(nn.Module):
    """Enlarges pictures (B, C, H, W) in 0 to 1 into (B, C, H × scale, W × scale), unclamped.

    H and W are multiples of the shape's `folding`.
    """

    def __init__(self, shape: RrdbShape) -> None:
        super().__init__()
        self.folding = shape.folding
        features = shape.feature_count
        folded = shape.channel_count * shape.folding**2
        self.conv_first = nn.Conv2d(folded, features, 3, padding=1)
        self.body = nn.Sequential(
            *(_ResidualBlock(features, shape.growth_count) for _ in range(shape.block_count))
        )
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, shape.channel_count, 3, padding=1)

    def forward(self, picture_BCHW: Tensor) -> Tensor:
        """Compute the larger picture."""
        folded = picture_BCHW
        if self.folding > 1:
            folded = F.pixel_unshuffle(picture_BCHW, self.folding)
        first = self.conv_first(folded)
        x = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        x = F.leaky_relu(self.conv_hr(x), 0.2)
        larger: Tensor = self.conv_last(x)
        return larger
