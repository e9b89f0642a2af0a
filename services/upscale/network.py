"""A network of a known architecture as a `LoadedUpscaler`: graphs, denoising, batches.

Made by `loading`. A denoise strength is a blend of two sets of weights, so that every strength is a
graph of its own: made when it is first asked for, off the device thread on a CPU, and a few are
kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor

from services.graphs.graph import Graph
from services.graphs.selection import GraphOptions, open_graph
from services.upscale.model import PictureKind, Tiling
from services.upscale.sources import NetworkWeights
from services.upscale.weights.descriptor import Descriptor
from services.upscale.weights.files import REVISION_LENGTH

_MAX_GRAPHS = 4
_CUDA_BATCH_PIXELS = 8 * 512 * 512


class NetworkUpscaler:
    """See `LoadedUpscaler`, which it implements."""

    def __init__(
        self,
        *,
        name: str,
        descriptor: Descriptor,
        weights: NetworkWeights,
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
        self._options = graphs
        self.revision = weights.digest()[:REVISION_LENGTH]
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
        source = self._weights.source(
            strength, tiling=self.tiling, eight_bit=self._options.eight_bit
        )
        graph = open_graph(source, self._options)
        with self._lock:
            self._graphs[strength] = graph
            if len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
        return graph
