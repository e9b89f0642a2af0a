"""An upscaler's network as a component of `services.graphs`, ready to run, export or compile.

Used by `network`, which runs it, and by `loading`, from which engines are built ahead of serving.
Shape legend: B tiles, h and w sides, H and W those of the enlarged tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.graphs.graph import GraphSource
from services.graphs.shapes import ShapeRange
from services.upscale.architectures.recognition import build, recognise
from services.upscale.architectures.srvgg import SrvggShape
from services.upscale.eight_bits import balanced, drawn_calibration, unbiased
from services.upscale.model import Tiling
from services.upscale.weights.files import REVISION_LENGTH, weights_digest

_EXAMPLE_SHAPE = (2, 3, 64, 48)
_OUTPUT = "levels"
"""Names what `_Pixels` does: graphs that were exported with another are not taken for these."""
_MOST_TILES = 16
"""Tiles that an engine takes at once."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NetworkWeights:
    """The weights of an upscaler: one set, or two between which a denoise strength blends.

    The blend is "deep network interpolation", Wang et al. 2019.
    """

    clean: Mapping[str, Tensor]
    """They remove all the noise that they can."""
    noisy: Mapping[str, Tensor] | None
    """They leave it in; None for a model without a choice."""

    def digest(self) -> str:
        """What tells these weights from others, hexadecimal."""
        sets = [self.clean, *([self.noisy] if self.noisy is not None else [])]
        return "-".join(weights_digest(each)[:REVISION_LENGTH] for each in sets)

    def blended(self, strength: float | None) -> Mapping[str, Tensor]:
        """The weights for a strength, 1 for the clean ones alone."""
        if self.noisy is None or strength is None:
            return self.clean
        return {
            name: torch.lerp(self.noisy[name].float(), own.float(), strength)
            for name, own in self.clean.items()
        }

    def source(
        self, strength: float | None, *, tiling: Tiling, eight_bit: bool = False
    ) -> GraphSource:
        """The component of a strength, see `tiles_source`."""
        digest = self.digest()
        return tiles_source(
            self.blended(strength),
            revision=digest if strength is None else f"{digest}-{strength:.1f}",
            tiling=tiling,
            eight_bit=eight_bit,
        )


class _Pixels(nn.Module):
    """A network whose result is rounded to levels of 255 where it is computed, with all threads.

    What leaves the graph is a quarter in size, and what is left to the assembly is to copy rows.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles_B3hw: Tensor) -> Tensor:
        """Return finished pixels; 0.5 is added because a cast rounds down."""
        larger_B3HW: Tensor = self.network(tiles_B3hw)
        levels = larger_B3HW.float().clamp(0.0, 1.0) * 255.0 + 0.5
        # The cast comes last: TensorRT knows 8 bits as an output alone.
        return levels.permute(0, 2, 3, 1).to(torch.uint8)


def tiles_source(
    weights: Mapping[str, Tensor], *, revision: str, tiling: Tiling, eight_bit: bool = False
) -> GraphSource:
    """The network of `weights` as a component: tiles (B, 3, h, w) to uint8 ones (B, H, W, 3).

    With `eight_bit` a compact network is prepared for convolutions in 8 bits; the others, which
    join channels of many layers, keep their precision.
    """
    shape = recognise(weights)
    calibration = None
    if eight_bit and isinstance(shape, SrvggShape):
        weights, calibration = unbiased(balanced(weights)), drawn_calibration()
        revision = f"{revision}-balanced"
    step, side = tiling.side_step, tiling.max_side
    sizes = ShapeRange(
        smallest=(1, 3, step, step), usual=(4, 3, side, side), largest=(_MOST_TILES, 3, side, side)
    )
    return GraphSource(
        name="upscaler",
        revision=f"{revision}-{_OUTPUT}",
        module=_Pixels(build(shape, weights)),
        input_names=("tiles",),
        example_inputs=(torch.zeros(_EXAMPLE_SHAPE),),
        dynamic_axes=(frozenset({0, 2, 3}),),
        precisions=frozenset({"float32", "bfloat16", "float16"}),
        calibration=calibration,
        shape_ranges=(sizes,),
    )
