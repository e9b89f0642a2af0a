"""A network of a known architecture as a `LoadedUpscaler`: graphs, denoising, batches.

Made by `loading`. A denoise strength is a blend of two sets of weights ("deep network
interpolation", Wang et al. 2019), so that every strength is a graph of its own: made when it is
first asked for, off the device thread on a CPU, and a few are kept.
Shape legend: B tiles, h and w sides, H and W those of the enlarged tiles.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from services.graphs.graph import Graph, GraphSource
from services.graphs.selection import GraphOptions, open_graph
from services.graphs.shapes import ShapeRange
from services.upscale.architectures.recognition import build, recognise
from services.upscale.architectures.srvgg import SrvggShape
from services.upscale.eight_bits import balanced, drawn_calibration, unbiased
from services.upscale.model import PictureKind, Tiling
from services.upscale.weights.descriptor import Descriptor
from services.upscale.weights.files import REVISION_LENGTH, weights_digest

_MAX_GRAPHS = 4
_EXAMPLE_SHAPE = (2, 3, 64, 48)
_OUTPUT = "levels"
"""Names what `_Pixels` does: graphs that were exported with another are not taken for these."""
_CUDA_BATCH_PIXELS = 8 * 512 * 512
_MOST_TILES = 16
"""Tiles that an engine takes at once."""


class NetworkUpscaler:
    """See `LoadedUpscaler`, which it implements."""

    def __init__(
        self,
        *,
        name: str,
        descriptor: Descriptor,
        weights: Mapping[str, Tensor],
        noisy_weights: Mapping[str, Tensor] | None,
        tiling: Tiling,
        graphs: GraphOptions,
    ) -> None:
        """Open the graph of the default strength; raises `GraphError`."""
        self.name = name
        self.display_name = descriptor.display_name
        self.description = descriptor.description
        self.family = descriptor.family
        self.license = descriptor.license
        self.picture_kinds: tuple[PictureKind, ...] = tuple(descriptor.picture_kinds)
        self.scale = descriptor.scale
        self.tiling = tiling
        self.device = graphs.device
        denoising = descriptor.denoising
        self.default_denoise_strength = denoising.default_strength if denoising else None
        self._weights = weights
        self._noisy_weights = noisy_weights
        self._options = graphs
        sets = [weights, *([noisy_weights] if noisy_weights is not None else [])]
        self._digest = "-".join(weights_digest(each)[:REVISION_LENGTH] for each in sets)
        self.revision = self._digest[:REVISION_LENGTH]
        self._graphs: OrderedDict[float | None, Graph] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self.runtimes: Mapping[str, str] = {
            "upscaler": self._graph(self.default_denoise_strength).runtime
        }

    @property
    def max_batch_pixels(self) -> int:
        """One tile of the largest size on a CPU, where a call is never too small."""
        return _CUDA_BATCH_PIXELS if self.device == "cuda" else self.tiling.max_side**2

    def enlarge(self, tiles_B3hw: Tensor, denoise_strength: float | None) -> Tensor:
        """Enlarge tiles, see `LoadedUpscaler`."""
        return self._graph(denoise_strength)(tiles_B3hw.to(self.device)).cpu()

    def prepare(self, denoise_strength: float | None) -> None:
        """Make the graph of a strength; on a GPU nothing, for it belongs to the device thread."""
        if self.device == "cpu":
            self._graph(denoise_strength)

    def warm_up(self) -> None:
        """Run the network on one small tile."""
        side = self.tiling.side_step * 2
        self.enlarge(torch.zeros(1, 3, side, side), self.default_denoise_strength)

    def _graph(self, strength: float | None) -> Graph:
        graph = self._found(strength)
        if graph is None:
            with self._making:
                graph = self._found(strength) or self._made(strength)
        return graph

    def _found(self, strength: float | None) -> Graph | None:
        with self._lock:
            if strength in self._graphs:
                self._graphs.move_to_end(strength)
            return self._graphs.get(strength)

    def _made(self, strength: float | None) -> Graph:
        graph = open_graph(self._source(strength), self._options)
        with self._lock:
            self._graphs[strength] = graph
            if len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
        return graph

    def _source(self, strength: float | None) -> GraphSource:
        revision = self._digest if strength is None else f"{self._digest}-{strength:.1f}"
        return tiles_source(
            self._blended(strength),
            revision=revision,
            tiling=self.tiling,
            eight_bit=self._options.eight_bit,
        )

    def _blended(self, strength: float | None) -> Mapping[str, Tensor]:
        if self._noisy_weights is None or strength is None:
            return self._weights
        return {
            name: torch.lerp(self._noisy_weights[name].float(), own.float(), strength)
            for name, own in self._weights.items()
        }


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
