"""Random draws as a function of where they are used, so that nothing has to be saved to resume.

Every draw has a generator of its own, seeded with a digest of the run's seed, a purpose and
counters. A process that starts at any micro-step draws what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Purpose = Literal[
    "noise",
    "timestep",
    "latent",
    "flip",
    "crop",
    "caption",
    "layers",
    "instance order",
    "class order",
    "class picture",
    "adapter",
    "validation",
]


def key(seed: int, purpose: Purpose, *counters: int) -> int:
    """A 32-bit number, all that torch's CPU generator takes in."""
    text = "/".join((str(seed), purpose, *map(str, counters)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def generator(seed: int, purpose: Purpose, *counters: int) -> torch.Generator:
    """A fresh CPU generator: the same draws on every device."""
    return torch.Generator("cpu").manual_seed(key(seed, purpose, *counters))


def uniform(seed: int, purpose: Purpose, *counters: int) -> float:
    """One draw from [0, 1)."""
    return float(torch.rand((), generator=generator(seed, purpose, *counters), dtype=torch.float64))


def normal(shape: tuple[int, ...], seed: int, purpose: Purpose, *counters: int) -> Tensor:
    """Standard normal draws, float32 on the CPU."""
    return torch.randn(shape, generator=generator(seed, purpose, *counters))


def index_of(position: int, count: int, seed: int, purpose: Purpose) -> int:
    """What the `position`th draw of an endless series of shuffled rounds over `count` gives."""
    epoch, place = divmod(position, count)
    return _permutation(count, key(seed, purpose, epoch))[place]


@lru_cache(maxsize=16)
def _permutation(count: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randperm(count, generator=torch.Generator("cpu").manual_seed(seed)).tolist())
