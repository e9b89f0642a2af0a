"""Rows in one batch do not touch each other."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from services.diffusion.noise import NoiseStream, draw_batch
from services.diffusion.samplers import (
    SAMPLERS,
    Trajectory,
    advance,
    collate,
    denoise,
    plan,
    scale_input,
)
from services.diffusion.schedule import NoiseSchedule
from tests.diffusion.samplers.reference import SHAPE, TRAINING, rational_model, run_tables

SCHEDULE = NoiseSchedule.from_config({**TRAINING, "prediction_type": "v_prediction"})


@dataclass
class Row:
    """One request in flight, as a batcher would hold it."""

    trajectory: Trajectory
    seed: int
    joins_at: int
    call: int = 0
    stream: NoiseStream = field(init=False)
    x: Tensor = field(init=False)
    memory: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.stream = NoiseStream(self.seed, SHAPE)
        self.x = self.stream.draw() * self.trajectory.initial_scale
        self.memory = torch.zeros(SHAPE)

    @property
    def done(self) -> bool:
        return self.call == self.trajectory.call_count


def random_rows(chance: random.Random) -> list[Row]:
    names = [*SAMPLERS, *chance.choices(list(SAMPLERS), k=5)]
    return [
        Row(plan(name, SCHEDULE, chance.randint(1, 20)), seed, chance.randint(0, 12))
        for seed, name in enumerate(names)
    ]


def tick(rows: list[Row], device: str) -> None:
    positions = [(row.trajectory, row.call) for row in rows]
    batch = collate(positions, device)
    needs_noise = [bool(row.trajectory.needs_noise[row.call]) for row in rows]
    noise = draw_batch([row.stream for row in rows], needs_noise, device)
    x = torch.stack([row.x for row in rows]).to(device)
    memory = torch.stack([row.memory for row in rows]).to(device)
    output = rational_model(scale_input(x, batch), batch.timesteps_B)
    next_x, next_memory = (tensor.cpu() for tensor in advance(x, memory, output, noise, batch))
    for row, x_CHW, memory_CHW in zip(rows, next_x, next_memory, strict=True):
        row.x, row.memory, row.call = x_CHW, memory_CHW, row.call + 1


def run_mixed(rows: list[Row], chance: random.Random, device: str = "cpu") -> int:
    """Run rows to their ends, joining late, in shuffled order, now and then held back."""
    largest = now = 0
    while not all(row.done for row in rows):
        running = [row for row in rows if row.joins_at <= now and not row.done]
        chosen = chance.sample(running, k=len(running) - chance.randint(0, len(running) // 3))
        if chosen:
            tick(chosen, device)
        largest, now = max(largest, len(chosen)), now + 1
    return largest


def alone(row: Row) -> Tensor:
    stream = NoiseStream(row.seed, SHAPE)
    start = stream.draw()[None] * row.trajectory.initial_scale
    return run_tables(row.trajectory, start, lambda: stream.draw()[None])[-1][0]


@pytest.mark.parametrize("shuffle", range(5))
def test_a_row_in_a_changing_mixture_equals_the_row_alone_bit_for_bit(shuffle: int) -> None:
    chance = random.Random(shuffle)
    rows = random_rows(chance)
    assert run_mixed(rows, chance) > 4
    for row in rows:
        assert torch.equal(row.x, alone(row))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_mixture_on_the_gpu_equals_the_row_alone_on_the_cpu() -> None:
    chance = random.Random(11)
    rows = random_rows(chance)
    run_mixed(rows, chance, "cuda")
    for row in rows:
        torch.testing.assert_close(row.x, alone(row), rtol=1e-5, atol=1e-5)


def test_the_arguments_of_advance_are_left_as_they_are() -> None:
    positions = [(plan("dpmpp_sde", SCHEDULE, 5), 1), (plan("heun", SCHEDULE, 5), 2)]
    x, memory, output, noise = torch.randn(4, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    arguments = [tensor.clone() for tensor in (x, memory, output, noise)]
    batch = collate(positions)
    denoise(x, output, batch)
    next_x, next_memory = advance(x, memory, output, noise, batch)
    for before, after in zip(arguments, (x, memory, output, noise), strict=True):
        assert torch.equal(before, after)
    assert next_x.untyped_storage().data_ptr() != next_memory.untyped_storage().data_ptr()


def test_advance_is_the_matrix_of_the_table() -> None:
    positions = [(plan(name, SCHEDULE, 6), 1) for name in SAMPLERS]
    columns = torch.randn(4, len(positions), *SHAPE, generator=torch.Generator().manual_seed(1))
    batch = collate(positions)
    x, output, memory, noise = columns
    actual = torch.stack(advance(x, memory, output, noise, batch), dim=1)
    expected = torch.einsum("brk,kbchw->brchw", batch.coefficients_B24, columns)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_output_is_updated_in_float32(dtype: torch.dtype) -> None:
    positions = [(plan("dpmpp_2m", SCHEDULE, 6), 2)]
    x, memory, output = torch.randn(3, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
    batch = collate(positions)
    half = output.to(dtype)
    actual = advance(x, memory, half, None, batch)
    expected = advance(x, memory, half.float(), None, batch)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_a_position_beyond_the_end_of_a_trajectory_is_an_index_error() -> None:
    trajectory = plan("ddim", SCHEDULE, 3)
    with pytest.raises(IndexError):
        collate([(trajectory, 3)])
