"""Nothing outlives its job, however the job ends."""

from __future__ import annotations

import gc
import random
import threading
import weakref

import torch

from services.diffusion.batching.group import Group
from services.diffusion.batching.job import Job, Row
from services.diffusion.samplers import SAMPLERS
from services.runtime.errors import DeadlineExceededError
from tests.diffusion.batching.doubles import Harness, sink_of


def _alive(*types: type) -> int:
    gc.collect()
    return sum(issubclass(type(thing), types) for thing in gc.get_objects())


def test_hundreds_of_random_ends_leave_no_row_no_tensor_and_no_reference_to_a_sink() -> None:
    draw = random.Random(0)
    harness = Harness(max_batch_rows=6, max_queued_requests=10_000, row_s=0.01)
    tensors_before = _alive(torch.Tensor)
    sinks = []
    for _ in range(600):
        job = harness.submit(
            account=draw.choice("abc"),
            priority=draw.randint(-1, 1),
            sampler=draw.choice(list(SAMPLERS)),
            step_count=draw.randint(1, 12),
            guidance_scale=draw.choice([1.0, 3.0]),
            width=draw.choice([64, 96]),
            sample_count=draw.randint(1, 3),
            preview_interval=draw.randint(0, 2),
            deadline=harness.clock.now + draw.uniform(0, 40) if draw.random() < 0.2 else None,
        )
        sinks.append(weakref.ref(job.sink))
        if draw.random() < 0.5:
            harness.tick()
        if draw.random() < 0.4:
            # Anywhere in its life: waiting, running, decoding or over.
            harness.batcher.withdraw(draw.choice(harness.jobs))
    harness.run()
    ends = {type(sink_of(job).error) for job in harness.jobs}
    assert ends == {type(None), DeadlineExceededError}
    assert any(sink_of(job).pictures for job in harness.jobs)
    assert all(sink_of(job).closed for job in harness.jobs)
    assert (harness.batcher.waiting_count, harness.batcher.running_count) == (0, 0)
    assert harness.metric("diffusion_queue_depth") == harness.metric("diffusion_running") == 0
    harness.jobs.clear()
    del job
    assert _alive(Row, Job, Group) == 0
    assert _alive(torch.Tensor) <= tensors_before
    assert not any(sink() for sink in sinks)


def test_pictures_are_counted_once_whatever_their_end() -> None:
    draw = random.Random(1)
    harness = Harness(max_batch_rows=4)
    sample_count = 0
    for _ in range(100):
        job = harness.submit(step_count=draw.randint(1, 6), sample_count=draw.randint(1, 3))
        sample_count += job.spec.sample_count
        harness.tick()
        if draw.random() < 0.5:
            harness.batcher.withdraw(draw.choice(harness.jobs))
    harness.run()
    counts = [
        harness.metric("diffusion_images_total", model="analytic", outcome=outcome) or 0.0
        for outcome in ("finished", "cancelled")
    ]
    assert sum(counts) == sample_count
    assert all(counts)


def test_submitting_and_withdrawing_from_other_threads_while_it_ticks_keeps_the_count() -> None:
    harness = Harness(max_batch_rows=4, max_queued_requests=10_000)

    def come_and_go(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(60):
            job = harness.submit(step_count=draw.randint(1, 4))
            if draw.random() < 0.5:
                harness.batcher.withdraw(job)

    threads = [threading.Thread(target=come_and_go, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        harness.tick()
    harness.run()
    assert harness.batcher.waiting_count == 0
    assert len(harness.jobs) == 240
    assert all(sink_of(job).closed for job in harness.jobs)
