"""Advance many rows by one model call each, whatever their samplers and positions.

The batcher collates one `StepBatch` a tick, calls the model with `scale_input` and `timesteps_B`,
applies guidance, and hands the result to `advance`. Rows never influence each other, and a row's
result does not depend on the rows beside it, bit for bit: every term is one correctly rounded
multiplication and one addition, in a fixed order. Nothing here keeps state or draws noise.

Shapes: B rows, C latent channels, H and W latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.diffusion.samplers.trajectory import MEMORY, NOISE, OUTPUT, STATE, Trajectory


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepBatch:
    """The table rows of one tick, float32 on the device that advances them."""

    timesteps_B: Tensor
    input_scale_B: Tensor
    denoised_B2: Tensor
    coefficients_B24: Tensor


def collate(
    positions: Sequence[tuple[Trajectory, int]], device: torch.device | str = "cpu"
) -> StepBatch:
    """Gather (trajectory, call index) of every row into one batch; a single transfer.

    `positions` must not be empty. Raises `IndexError` for a call beyond a trajectory's end.
    """
    packed = np.empty((len(positions), 12), dtype=np.float32)
    for row, (trajectory, call) in zip(packed, positions, strict=True):
        row[0] = trajectory.timesteps[call]
        row[1] = trajectory.input_scale[call]
        row[2:4] = trajectory.denoised[call]
        row[4:] = trajectory.coefficients[call].reshape(-1)
    table = torch.from_numpy(packed).to(device)
    return StepBatch(
        timesteps_B=table[:, 0],
        input_scale_B=table[:, 1],
        denoised_B2=table[:, 2:4],
        coefficients_B24=table[:, 4:].view(-1, 2, 4),
    )


def scale_input(x_BCHW: Tensor, batch: StepBatch) -> Tensor:
    """State as the model wants it, (B, C, H, W) float32; a new tensor."""
    return x_BCHW * _per_row(batch.input_scale_B)


def denoise(x_BCHW: Tensor, output_BCHW: Tensor, batch: StepBatch) -> Tensor:
    """Clean estimate x0 of every row from the state *before* `advance`; for previews."""
    p_B, q_B = batch.denoised_B2.unbind(1)
    return (x_BCHW * _per_row(p_B)).add_(output_BCHW.float() * _per_row(q_B))


def advance(
    x_BCHW: Tensor,
    memory_BCHW: Tensor,
    output_BCHW: Tensor,
    noise_BCHW: Tensor | None,
    batch: StepBatch,
) -> tuple[Tensor, Tensor]:
    """Next (x, memory) of every row; the arguments stay as they are.

    `x` and `memory` are float32, `output` is the guided raw prediction in any float type, `noise`
    float32 with fresh N(0, I) draws where `needs_noise` and finite values elsewhere, or None if
    no row needs it. A row's memory is all zeros before its first call.
    """
    columns = {STATE: x_BCHW, OUTPUT: output_BCHW.float(), MEMORY: memory_BCHW}
    if noise_BCHW is not None:
        columns[NOISE] = noise_BCHW
    scratch = torch.empty_like(x_BCHW)
    state, memory = (
        _weighted_sum(columns, batch.coefficients_B24[:, target], scratch) for target in range(2)
    )
    return state, memory


def _weighted_sum(columns: dict[int, Tensor], weights_B4: Tensor, scratch: Tensor) -> Tensor:
    # Not addcmul, which rounds once or twice depending on the processor and on the loop that an
    # element falls into; separate products and sums round alike everywhere.
    total = columns[STATE] * _per_row(weights_B4[:, STATE])
    for column, tensor in columns.items():
        if column != STATE:
            torch.mul(tensor, _per_row(weights_B4[:, column]), out=scratch)
            total += scratch
    return total


def _per_row(values_B: Tensor) -> Tensor:
    return values_B.view(-1, 1, 1, 1)
