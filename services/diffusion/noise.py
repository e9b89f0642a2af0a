"""Noise of one row: a stream that depends on its seed alone.

Each row draws from a CPU generator of its own, in the order in which diffusers draws with a
generator: first the initial latent, then one draw for every model call that needs noise. So a
seed gives the same picture in any batch, on any device, and the one that diffusers gives.
The batcher owns the streams; samplers only say when a draw is due.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SEED_COUNT = 2**32


def sample_seed(seed: int, index: int) -> int:
    """Seed of sample `index` of a request: consecutive, wrapping at 2**32."""
    return (seed + index) % SEED_COUNT


class NoiseStream:
    """Standard normal draws of one row, (C, H, W) float32 on the CPU."""

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        """Start the stream; raises `ValueError` for a seed outside 0..2**32-1."""
        if not 0 <= seed < SEED_COUNT:
            raise ValueError(f"seed must be between 0 and {SEED_COUNT - 1}, not {seed}")
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._shape = shape

    def draw(self) -> Tensor:
        """Return the next draw; the first is the initial latent before `initial_scale`."""
        return torch.randn(self._shape, generator=self._generator, dtype=torch.float32)

    def zeros(self) -> Tensor:
        """Zeros in the shape of a draw, leaving the stream where it is."""
        return torch.zeros(self._shape, dtype=torch.float32)


def draw_batch(
    streams: Sequence[NoiseStream], needs_noise: Sequence[bool], device: torch.device | str = "cpu"
) -> Tensor | None:
    """Draw for the rows that need noise, zeros for the others: (B, C, H, W) float32 on `device`.

    None if no row needs noise. All streams must have the same shape.
    """
    if not any(needs_noise):
        return None
    rows = [
        stream.draw() if needed else stream.zeros()
        for stream, needed in zip(streams, needs_noise, strict=True)
    ]
    return torch.stack(rows).to(device, non_blocking=True)
