"""Rows of one model and latent shape, and one step of some of them, faults and previews included.

Owned by the batcher. It moves rows and reports; what that means for their jobs is the batcher's
decision.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from services.diffusion.batching.denoising import Denoised, advance_rows, call_denoiser
from services.diffusion.batching.events import SamplePreviewed
from services.diffusion.batching.job import Job, Row
from services.diffusion.batching.row_pool import RowPool
from services.diffusion.model import LoadedModel
from services.graphs.isolation import run_isolated
from services.runtime.pace import Average


@dataclass(kw_only=True, slots=True)
class Stepped:
    """What became of the rows of a tick."""

    rows: list[Row] = field(default_factory=list)
    """Rows that are a call further."""
    faults: list[tuple[Row, Exception]] = field(default_factory=list)
    """Rows that cannot go on."""


class Group:
    """Started rows that may share model calls."""

    def __init__(self, first: Job, context_2LD: Tensor) -> None:
        """Make an empty group for jobs like `first`, whose conditioning gives the sizes."""
        length, width = context_2LD.shape[1:]
        self._model: LoadedModel = first.model
        self._pool = RowPool(first.group[1], (length, width), first.model.device)
        self.slot_s = Average()
        """Measured device seconds of a slot."""

    def __len__(self) -> int:
        """Rows in the group."""
        return len(self._pool)

    def join(self, job: Job, context_2LD: Tensor) -> None:
        """Take in all rows of `job`, each with the first draw of its own noise."""
        for row in job.rows:
            self._pool.join(row, row.noise.draw() * job.trajectory.initial_scale, context_2LD)

    def latent(self, row: Row) -> Tensor:
        """A copy of the latent of `row`, (C, h, w)."""
        return self._pool.latent(row)

    def leave(self, row: Row) -> None:
        """Take `row` out; its tensors are gone."""
        self._pool.leave(row)

    def step(self, rows: list[Row]) -> Stepped:
        """Call the denoiser for `rows` and advance them; sends the previews that are due."""
        outcome = run_isolated(
            rows, lambda some: call_denoiser(self._model, self._pool, self._pool.select(some))
        )
        stepped = Stepped(faults=outcome.faults)
        for _, denoised in outcome.results:
            self._advance(denoised, stepped)
        return stepped

    def _advance(self, denoised: Denoised, stepped: Stepped) -> None:
        rows = denoised.selection.rows
        steps_before = [row.completed_step_count for row in rows]
        finite = advance_rows(self._pool, denoised, self._model.device)
        due: list[int] = []
        for place, row in enumerate(rows):
            if not finite[place]:
                error = FloatingPointError("the latent is not finite")
                stepped.faults.append((row, error))
                continue
            stepped.rows.append(row)
            step_count = row.completed_step_count - steps_before[place]
            row.job.completed_step_count += step_count
            if step_count and _preview_is_due(row):
                due.append(place)
        if due:
            self._preview(denoised, due, stepped)

    def _preview(self, denoised: Denoised, places: list[int], stepped: Stepped) -> None:
        estimates = denoised.clean_estimate()
        rows = denoised.selection.rows
        outcome = run_isolated(places, lambda some: self._model.preview(estimates[list(some)]))
        for some, pictures in outcome.results:
            for place, pixels in zip(some, pictures, strict=True):
                row = rows[place]
                step = row.completed_step_count
                event = SamplePreviewed(index=row.index, step=step, pixels=pixels)
                row.job.sink.put_latest(("preview", row.index), event)
        stepped.faults += [(rows[place], error) for place, error in outcome.faults]


def _preview_is_due(row: Row) -> bool:
    interval = row.job.spec.preview_interval
    return interval > 0 and not row.finished and row.completed_step_count % interval == 0
