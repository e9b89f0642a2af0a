"""One tick's arithmetic: pack the halves, call the model once, guide, advance every row.

Called by the batcher. Pure but for the noise streams of the rows, which draw in the order of
their own trajectory, and only after the model has answered: a call that failed can be repeated.
No row's result depends on the rows beside it, as far as the model's own does not.

Shape legend: see `row_pool.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.diffusion.batching.row_pool import RowPool, Selection
from services.diffusion.model import LoadedModel
from services.diffusion.noise import draw_batch
from services.diffusion.samplers import StepBatch, advance, collate, denoise, scale_input


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Denoised:
    """A model call that succeeded: what `finish` needs to advance the rows."""

    selection: Selection
    step: StepBatch
    before_BChw: Tensor
    memory_BChw: Tensor
    output_BChw: Tensor
    """The guided raw prediction."""

    def clean_estimate(self) -> Tensor:
        """Estimate x0 of every row, (B, C, h, w), for previews."""
        return denoise(self.before_BChw, self.output_BChw, self.step)


def call_denoiser(model: LoadedModel, pool: RowPool, selection: Selection) -> Denoised:
    """Call the model once for all rows of the selection, each at its own timestep."""
    positions = [(row.job.trajectory, row.call) for row in selection.rows]
    step = collate(positions, model.device)
    latents, memory = pool.read(selection)
    inputs = scale_input(latents, step)
    guided = selection.guided_count
    output = model.denoise(
        torch.cat([inputs, inputs[:guided]]),
        torch.cat([step.timesteps_B, step.timesteps_B[:guided]]),
        selection.context_BLD,
    )
    return Denoised(
        selection=selection,
        step=step,
        before_BChw=latents,
        memory_BChw=memory,
        output_BChw=_guide(output, selection),
    )


def advance_rows(pool: RowPool, denoised: Denoised, device: str) -> list[bool]:
    """Move every row one call further; returns for each whether its latent is finite.

    Waits for the device, which paces the batcher: it is never more than one call ahead.
    """
    rows = denoised.selection.rows
    needs_noise = [bool(row.job.trajectory.needs_noise[row.call]) for row in rows]
    noise = draw_batch([row.noise for row in rows], needs_noise, device)
    latents, memory = advance(
        denoised.before_BChw, denoised.memory_BChw, denoised.output_BChw, noise, denoised.step
    )
    pool.write(denoised.selection, latents, memory)
    for row in rows:
        row.call += 1
    finite: list[bool] = latents.isfinite().flatten(1).all(dim=1).tolist()
    return finite


def _guide(output: Tensor, selection: Selection) -> Tensor:
    """Ho and Salimans 2022, equation 6, written as in diffusers: u + s (c - u)."""
    row_count, guided = len(selection.rows), selection.guided_count
    if guided == 0:
        return output
    conditional, unconditional = output[:guided], output[row_count:]
    # Separate operations: a fused one could round differently by a row's place in the batch.
    difference = conditional - unconditional
    difference *= selection.guidance_G111
    difference += unconditional
    return torch.cat([difference, output[guided:row_count]])
