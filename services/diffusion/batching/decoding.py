"""Finished latents on their way to pixels: decoded together, but never many at a time.

Owned by the batcher, which decodes one batch between two denoiser calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from services.diffusion.batching.job import Job, Row
from services.diffusion.model import UInt8Array

FinishedLatent: TypeAlias = tuple[Row, Tensor]


class DecodeQueue:
    """Finished rows in order of arrival."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._waiting: deque[FinishedLatent] = deque()

    def __len__(self) -> int:
        """Rows that wait."""
        return len(self._waiting)

    def add(self, row: Row, latent_Chw: Tensor) -> None:
        """Queue a finished row."""
        self._waiting.append((row, latent_Chw))

    def drop(self, job: Job) -> None:
        """Forget the rows of `job`."""
        self._waiting = deque(entry for entry in self._waiting if entry[0].job is not job)

    def take(self) -> list[FinishedLatent]:
        """Take the oldest rows that can be decoded together, at most `max_rows`."""
        batch: list[FinishedLatent] = []
        rest: deque[FinishedLatent] = deque()
        for entry in self._waiting:
            fits = not batch or batch[0][0].job.group == entry[0].job.group
            (batch if fits and len(batch) < self._max_rows else rest).append(entry)
        self._waiting = rest
        return batch


def decode(batch: Sequence[FinishedLatent]) -> UInt8Array:
    """Decode latents of one group into pictures (B, H, W, 3)."""
    return batch[0][0].job.model.decode(torch.stack([latent for _, latent in batch]))
