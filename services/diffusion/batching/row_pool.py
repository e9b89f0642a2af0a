"""The tensors of all started rows of one group, packed: no list of tensors is stacked at a tick.

One pool for each `Group`. Rows sit at the front of preallocated tensors that grow by doubling; the
last row moves into the place of one that leaves. What a selection of rows needs is kept until the
selection or the pool changes, so that a steady batch gathers latents alone. Device thread only.

Shape legend: B chosen rows, G guided ones among them, R places, C, h, w latent, L tokens, D text
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.diffusion.batching.job import Row

_FIRST_CAPACITY = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Selection:
    """Chosen rows with what stays the same for as long as they are chosen; guided rows first."""

    rows: tuple[Row, ...]
    guided_count: int
    index_B: Tensor
    """Places in the pool, int64."""
    context_BLD: Tensor
    """(B + G, L, D): the conditional halves of all rows, then the unconditional of the guided."""
    guidance_G111: Tensor
    """Guidance scales, ready to multiply with latents."""


class RowPool:
    """Latents, sampler memory and conditioning of rows, (R, ...) each, float32."""

    def __init__(
        self, latent_shape: tuple[int, int, int], context_shape: tuple[int, int], device: str
    ):
        self._device = device
        self._latents = torch.empty((_FIRST_CAPACITY, *latent_shape), device=device)
        self._memory = torch.zeros_like(self._latents)
        # Conditional and unconditional; the second stays unused where a row has no guidance.
        self._context = torch.empty((_FIRST_CAPACITY, 2, *context_shape), device=device)
        self._rows: list[Row] = []
        self._selection: Selection | None = None

    def __len__(self) -> int:
        """Rows in the pool."""
        return len(self._rows)

    def join(self, row: Row, latent_Chw: Tensor, context_2LD: Tensor) -> None:
        """Give `row` a place, with its first latent; `context` may have one half only."""
        self._reserve(len(self._rows) + 1)
        row.place = len(self._rows)
        self._rows.append(row)
        self._latents[row.place].copy_(latent_Chw)
        self._memory[row.place].zero_()
        self._context[row.place, : len(context_2LD)].copy_(context_2LD)
        self._selection = None

    def leave(self, row: Row) -> None:
        """Free the place of `row`; its tensors are gone."""
        last = self._rows.pop()
        if last is not row:
            for tensor in (self._latents, self._memory, self._context):
                tensor[row.place].copy_(tensor[last.place])
            self._rows[row.place] = last
            last.place = row.place
        row.place = -1
        self._selection = None

    def latent(self, row: Row) -> Tensor:
        """A copy of the latent of `row`, (C, h, w)."""
        return self._latents[row.place].clone()

    def select(self, rows: Sequence[Row]) -> Selection:
        """Prepare `rows` for a model call; guided ones are put first."""
        ordered = tuple(sorted(rows, key=lambda row: (-row.slot_count, row.place)))
        if self._selection is None or self._selection.rows != ordered:
            self._selection = self._gather(ordered)
        return self._selection

    def read(self, selection: Selection) -> tuple[Tensor, Tensor]:
        """Copies of the latents and memories of the selection, (B, C, h, w) each."""
        index = selection.index_B
        return self._latents.index_select(0, index), self._memory.index_select(0, index)

    def write(self, selection: Selection, latents_BChw: Tensor, memory_BChw: Tensor) -> None:
        """Store the advanced latents and memories of the selection."""
        self._latents.index_copy_(0, selection.index_B, latents_BChw)
        self._memory.index_copy_(0, selection.index_B, memory_BChw)

    def _gather(self, rows: tuple[Row, ...]) -> Selection:
        guided = [row for row in rows if row.slot_count == 2]
        index = torch.tensor([row.place for row in rows], device=self._device)
        scales = torch.tensor([row.job.spec.guidance_scale for row in guided], device=self._device)
        uncond = self._context[:, 1].index_select(0, index[: len(guided)])
        return Selection(
            rows=rows,
            guided_count=len(guided),
            index_B=index,
            context_BLD=torch.cat([self._context[:, 0].index_select(0, index), uncond]),
            guidance_G111=scales.view(-1, 1, 1, 1),
        )

    def _reserve(self, count: int) -> None:
        capacity = len(self._latents)
        if count <= capacity:
            return
        self._latents, self._memory, self._context = (
            torch.cat([tensor, torch.zeros_like(tensor)])
            for tensor in (self._latents, self._memory, self._context)
        )
        self._selection = None
