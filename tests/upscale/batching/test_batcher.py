"""Tiles of all requests share batches, small pictures overtake large ones, who leaves is gone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from services.runtime.errors import (
    DeadlineExceededError,
    InternalError,
    QueueFullError,
    UnavailableError,
)
from services.upscale.batching import JobQueued
from tests.upscale.doubles import (
    NearestUpscaler,
    new_batcher,
    noise,
    repeated,
    run,
    submit,
)

TILE = 32
"""Side of the tile that a picture of 16 × 16 takes."""


def test_tiles_of_all_requests_share_a_call(registry: CollectorRegistry) -> None:
    model = NearestUpscaler(max_batch_pixels=4 * TILE * TILE)
    batcher = new_batcher(registry)
    pictures = [noise(16, 16, seed=seed) for seed in range(6)]
    sinks = [submit(batcher, model, pixels)[1] for pixels in pictures]
    assert batcher.tick()
    assert [sink.closed for sink in sinks] == [True] * 4 + [False] * 2
    assert not batcher.tick()
    assert [shape[0] for shape in model.calls] == [4, 2]
    for pixels, sink in zip(pictures, sinks, strict=True):
        assert np.array_equal(sink.picture, repeated(pixels, 4))


def test_models_and_strengths_do_not_share_a_call(registry: CollectorRegistry) -> None:
    one = NearestUpscaler("one", default_denoise_strength=0.5, max_batch_pixels=10**6)
    two = NearestUpscaler("two", max_batch_pixels=10**6)
    batcher = new_batcher(registry)
    submit(batcher, one, noise(16, 16), denoise_strength=0.5)
    submit(batcher, two, noise(16, 16))
    submit(batcher, one, noise(16, 16), denoise_strength=0.2)
    submit(batcher, one, noise(16, 16), denoise_strength=0.5)
    run(batcher)
    assert sorted(shape[0] for shape in one.calls) == [1, 2]
    assert {*one.strengths} == {0.5, 0.2}
    assert [shape[0] for shape in two.calls] == [1]


def test_a_small_picture_overtakes_a_large_one_between_two_batches(
    registry: CollectorRegistry,
) -> None:
    model = NearestUpscaler()
    batcher = new_batcher(registry)
    large, large_sink = submit(batcher, model, noise(64, 400))
    batcher.tick()
    _, small_sink = submit(batcher, model, noise(48, 48, seed=1))
    batcher.tick()
    assert small_sink.closed
    assert not large_sink.closed
    run(batcher, large)
    assert np.array_equal(large_sink.picture, repeated(noise(64, 400), 4))


def test_small_pictures_without_end_do_not_starve_a_large_one(registry: CollectorRegistry) -> None:
    model = NearestUpscaler()
    batcher = new_batcher(registry)
    large, sink = submit(batcher, model, noise(64, 200))
    ticks = 0
    while not sink.closed:
        submit(batcher, model, noise(48, 48))
        batcher.tick()
        while large.bands_under_way:
            batcher.band_consumed(large)
        ticks += 1
        assert ticks < 200


def test_accounts_share_the_device(registry: CollectorRegistry) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    model = NearestUpscaler()
    batcher = new_batcher(registry, clock=clock)
    greedy = [submit(batcher, model, noise(48, 48), account="greedy") for _ in range(20)]
    _, modest = submit(batcher, model, noise(48, 48), account="modest")
    for _ in range(3):
        batcher.tick()
    assert modest.closed
    assert sum(sink.closed for _, sink in greedy) < 3


def test_a_request_that_leaves_is_gone_before_the_next_call(registry: CollectorRegistry) -> None:
    model = NearestUpscaler()
    batcher = new_batcher(registry)
    job, sink = submit(batcher, model, noise(64, 400))
    batcher.tick()
    calls = len(model.calls)
    batcher.withdraw(job)
    assert not batcher.tick()
    assert len(model.calls) == calls
    assert sink.closed
    assert batcher.running_count == 0
    cancelled = registry.get_sample_value(
        "upscale_images_total", {"model": "nearest", "outcome": "cancelled"}
    )
    assert cancelled == 1


def test_a_picture_waits_for_its_encoder_and_others_go_on(registry: CollectorRegistry) -> None:
    model = NearestUpscaler()
    batcher = new_batcher(registry, max_bands_under_way=1)
    tall, tall_sink = submit(batcher, model, noise(300, 40))
    while batcher.tick():
        pass
    assert len(tall_sink.bands) == 1
    _, other = submit(batcher, model, noise(40, 40))
    batcher.tick()
    assert other.closed
    run(batcher, tall)
    assert np.array_equal(tall_sink.picture, repeated(noise(300, 40), 4))


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits(
    registry: CollectorRegistry,
) -> None:
    now = [0.0]
    batcher = new_batcher(registry, clock=lambda: now[0], max_started_jobs=1)
    model = NearestUpscaler()
    _, running = submit(batcher, model, noise(64, 400), deadline=10.0)
    batcher.tick()
    _, waiting = submit(batcher, model, noise(64, 400), deadline=10.0)
    batcher.tick()
    now[0] = 10.0
    assert not batcher.tick()
    assert isinstance(running.error, DeadlineExceededError)
    assert isinstance(waiting.error, DeadlineExceededError)


def test_a_fault_ends_the_one_request_that_caused_it(registry: CollectorRegistry) -> None:
    model = NearestUpscaler(max_batch_pixels=10**6)
    poisoned = np.full((16, 16, 3), 255, np.uint8)

    def fault(tiles: Tensor) -> None:
        if bool((tiles == 1.0).all(dim=(1, 2, 3)).any()):
            raise RuntimeError("out of memory")

    model.fault = fault
    batcher = new_batcher(registry)
    good = [submit(batcher, model, noise(16, 16, seed=seed))[1] for seed in range(2)]
    _, bad = submit(batcher, model, poisoned)
    run(batcher)
    assert isinstance(bad.error, InternalError)
    assert bad.bands == []
    for seed, sink in enumerate(good):
        assert sink.error is None
        assert np.array_equal(sink.picture, repeated(noise(16, 16, seed=seed), 4))


def test_a_lost_device_is_not_taken_for_a_fault_of_a_request(registry: CollectorRegistry) -> None:
    model = NearestUpscaler()
    batcher = new_batcher(registry)

    def lost(tiles: Tensor) -> None:
        raise torch.AcceleratorError("the device is gone")

    model.fault = lost
    _, running = submit(batcher, model, noise(16, 16))
    with pytest.raises(torch.AcceleratorError):
        batcher.tick()
    _, arrived = submit(batcher, model, noise(16, 16))
    batcher.abort(UnavailableError(reason="BACKEND_LOST"))
    assert isinstance(running.error, UnavailableError)
    assert isinstance(arrived.error, UnavailableError)
    with pytest.raises(UnavailableError):
        batcher.reserve(1)


def test_what_all_requests_hold_together_is_bounded(registry: CollectorRegistry) -> None:
    batcher = new_batcher(registry, max_held_pixels=100, max_queued_requests=3)
    # Alone even a picture beyond the bound has a place.
    with batcher.reserve(1000), pytest.raises(QueueFullError):
        batcher.reserve(1)
    first = batcher.reserve(60)
    with pytest.raises(QueueFullError):
        batcher.reserve(41)
    others = [batcher.reserve(20), batcher.reserve(20)]
    with pytest.raises(QueueFullError):
        batcher.reserve(0)
    first.close()
    first.close()
    batcher.reserve(60).close()
    for each in others:
        each.close()
    assert batcher.waiting_count == 0


def test_a_waiting_request_is_told_its_position(registry: CollectorRegistry) -> None:
    now = [0.0]
    batcher = new_batcher(registry, clock=lambda: now[0], max_started_jobs=1)
    model = NearestUpscaler()
    submit(batcher, model, noise(64, 400))
    batcher.tick()
    waiting = [submit(batcher, model, noise(64, 400))[1] for _ in range(2)]
    now[0] = 1.0
    batcher.tick()
    assert [sink.events for sink in waiting] == [[JobQueued(position=0)], [JobQueued(position=1)]]


def test_progress_counts_tiles_and_ends_with_all_of_them(registry: CollectorRegistry) -> None:
    batcher = new_batcher(registry)
    job, sink = submit(batcher, NearestUpscaler(), noise(64, 400))
    run(batcher, job)
    assert sink.completed_tile_count == job.plan.tile_count
    megapixels = registry.get_sample_value("upscale_megapixels_total", {"model": "nearest"})
    assert megapixels == pytest.approx(64 * 400 * 16 / 1e6)
    tiles = registry.get_sample_value("upscale_tiles_total", {"model": "nearest"})
    assert tiles == job.plan.tile_count


def test_a_queue_is_full_for_a_small_share_while_it_has_room_for_a_larger_one(
    registry: CollectorRegistry,
) -> None:
    batcher = new_batcher(registry, max_held_pixels=1000, max_queued_requests=8)
    places = [batcher.reserve(10, queue_share=0.25) for _ in range(2)]
    with pytest.raises(QueueFullError):
        batcher.reserve(10, queue_share=0.25)
    places += [batcher.reserve(10) for _ in range(6)]
    with pytest.raises(QueueFullError):
        batcher.reserve(10)
    for place in places:
        place.close()
    # Nor may a few large pictures take what is kept for larger shares.
    with batcher.reserve(200, queue_share=0.25):
        with pytest.raises(QueueFullError):
            batcher.reserve(51, queue_share=0.25)
        batcher.reserve(800).close()
