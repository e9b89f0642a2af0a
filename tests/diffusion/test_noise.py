"""A seed alone decides a row's noise."""

from __future__ import annotations

import pytest
import torch

from services.diffusion.noise import NoiseStream, draw_batch, sample_seed

SHAPE = (4, 5, 3)


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_draws_continue_one_cpu_generator(seed: int) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    stream = NoiseStream(seed, SHAPE)
    for _ in range(3):
        expected = torch.randn((1, *SHAPE), generator=generator, dtype=torch.float32)
        assert torch.equal(stream.draw(), expected[0])


def test_zeros_leave_the_stream_where_it_is() -> None:
    stream, other = NoiseStream(1, SHAPE), NoiseStream(1, SHAPE)
    assert not stream.zeros().any()
    assert torch.equal(stream.draw(), other.draw())


def test_global_random_state_has_no_say_and_is_not_touched() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = NoiseStream(5, SHAPE).draw()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(NoiseStream(5, SHAPE).draw(), first)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed must be between 0 and 4294967295"):
        NoiseStream(seed, SHAPE)


def test_samples_take_consecutive_seeds_that_wrap() -> None:
    assert [sample_seed(2**32 - 2, i) for i in range(4)] == [2**32 - 2, 2**32 - 1, 0, 1]


def test_a_batch_draws_only_for_rows_that_need_noise() -> None:
    streams = [NoiseStream(seed, SHAPE) for seed in range(3)]
    alone = [NoiseStream(seed, SHAPE) for seed in range(3)]
    assert draw_batch(streams, [False] * 3) is None
    noise = draw_batch(streams, [True, False, True])
    assert noise is not None
    assert torch.equal(noise[0], alone[0].draw())
    assert not noise[1].any()
    assert torch.equal(noise[2], alone[2].draw())
    assert torch.equal(streams[1].draw(), alone[1].draw())
