"""What the rest of the upscale service sees of a model: one protocol and plain data.

The batcher drives a `LoadedUpscaler`, the servicer lists and validates against its data, and
`loading.load_upscaler` makes one. Nothing here loads, computes or knows an architecture.

Shape legend: B tiles of a batch, h and w tile sides in source pixels, N scale of the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from services.graphs.graph import DeviceName, PrecisionName, RuntimeName
from services.runtime.device_model import DeviceModel

UInt8Array = npt.NDArray[np.uint8]
PictureKind = Literal["photo", "illustration"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """How a picture is cut for a network. All in source pixels."""

    max_side: int
    """Longest side of a tile, its padding included."""
    padding: int
    """Margin towards other tiles whose result is thrown away: there the network sees too little."""
    feather: int
    """Width over which neighbouring tiles are blended, beyond the padding."""
    border: int = 8
    """Reflected pixels around the picture, so that the network's own zero padding stays outside."""
    side_step: int = 8
    """Tile sides are multiples of this, so that tiles of many pictures have the same shape."""

    def __post_init__(self) -> None:
        if min(self.padding, self.border) < 0 or self.feather < 1 or self.side_step < 1:
            raise ValueError("padding and border are at least 0, feather and side_step at least 1")
        if self.max_side % self.side_step or self.max_side < self.min_side:
            raise ValueError(
                f"max_side must be a multiple of {self.side_step} and at least {self.min_side}"
            )

    @property
    def min_side(self) -> int:
        """Smallest `max_side` with which tiles advance by a step at least."""
        needed = 2 * self.padding + self.feather + self.side_step
        return -(-needed // self.side_step) * self.side_step


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceOptions:
    """What a process has to run networks with; from its settings."""

    runtime: RuntimeName = "auto"
    device: DeviceName = "auto"
    precision: PrecisionName = "auto"
    """`int8`: compact networks with 8-bit convolutions, which changes pictures a little."""
    thread_count: int | None = None
    """Threads that compute on a CPU; None: one for every core that this process may use."""
    cache_dir: Path = Path(".cache/limner")
    """Where exported graphs are kept."""
    max_tile_side: int | None = None
    """Smaller tiles than the model advises: less memory, quicker cancelling, more overlap."""


class LoadedUpscaler(DeviceModel, Protocol):
    """A network that is ready to enlarge tiles.

    Attributes may be used from any thread, methods from the device thread alone, save `prepare`.
    """

    @property
    def picture_kinds(self) -> tuple[PictureKind, ...]:
        """What it was trained on; empty when unknown."""
        ...

    @property
    def scale(self) -> int:
        """Factor by which the network enlarges."""
        ...

    @property
    def tiling(self) -> Tiling:
        """How pictures are cut for it on this device."""
        ...

    @property
    def max_batch_pixels(self) -> int:
        """Source pixels beyond which a larger batch no longer pays on this device."""
        ...

    @property
    def default_denoise_strength(self) -> float | None:
        """Noise removal where a request says nothing; None for a network that has no choice."""
        ...

    def enlarge(self, tiles_B3hw: Tensor, denoise_strength: float | None) -> Tensor:
        """Enlarge tiles in 0 to 1 on the CPU; (B, h × N, w × N, 3) uint8 on the CPU.

        A tile's result does not depend on the others in the call. `denoise_strength` is a tenth,
        None where the default is. The first call with a strength that was not prepared takes
        seconds.
        """
        ...

    def prepare(self, denoise_strength: float | None) -> None:
        """Get ready for a strength, which may take seconds; from any thread but the device's."""
        ...
