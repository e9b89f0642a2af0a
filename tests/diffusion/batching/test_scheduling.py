"""Who gets the slots: short among long, accounts, priorities, deadlines, groups."""

from __future__ import annotations

import random

import numpy as np
import pytest

from services.diffusion.batching import Job
from services.diffusion.batching.scheduler import STRETCH, Scheduler
from tests.diffusion.batching.doubles import AnalyticModel, Harness, sink_of


def _ticks_until_done(harness: Harness, job: Job, *, limit: int = 5000) -> int:
    for count in range(1, limit + 1):
        harness.tick()
        if sink_of(job).closed:
            return count
    raise AssertionError(f"not done after {limit} ticks")


def test_a_short_job_overtakes_long_ones_at_once() -> None:
    harness = Harness(max_batch_rows=4)
    for _ in range(20):
        harness.submit(step_count=50)
    harness.tick(10)
    short = harness.submit(step_count=4)
    assert _ticks_until_done(harness, short) == 4


def test_a_long_job_is_overtaken_only_by_what_arrives_within_its_patience() -> None:
    harness = Harness(max_batch_rows=2)
    long = harness.submit(step_count=30)
    for _ in range(1000):
        # Twice what the device can do, for ever.
        harness.submit(step_count=2)
        harness.tick()
        if sink_of(long).closed:
            break
    assert sink_of(long).closed
    overtaken_for = STRETCH * (30 - 2)
    assert overtaken_for < harness.ticks <= 2 * overtaken_for + 30


def test_every_tick_uses_all_slots_that_the_waiting_rows_can_fill() -> None:
    harness = Harness(max_batch_rows=5)
    for seed in range(6):
        harness.submit(seed=seed, guidance_scale=1.0 if seed == 5 else 3.0)
    harness.tick()
    # Two guided rows and the unguided one, though three guided ones came before it.
    assert harness.model.calls == [5]


def test_two_accounts_share_the_device_equally_however_much_one_of_them_sends() -> None:
    harness = Harness(max_batch_rows=4)
    for _ in range(40):
        harness.submit(account="greedy", step_count=10)
    for _ in range(40):
        harness.submit(account="modest", step_count=10)
    for _ in range(200):
        harness.submit(account="greedy", step_count=10)
    harness.tick(100)
    assert harness.finished("greedy") == harness.finished("modest") == 10


def test_an_account_that_comes_late_neither_catches_up_nor_waits() -> None:
    harness = Harness(max_batch_rows=2)
    for _ in range(100):
        harness.submit(account="early", step_count=10)
    harness.tick(200)
    for _ in range(50):
        harness.submit(account="late", step_count=10)
    before = harness.finished("early")
    harness.tick(100)
    assert harness.finished("late") == 5
    assert harness.finished("early") - before == 5


def test_device_time_that_nobody_else_wanted_is_not_held_against_an_account() -> None:
    harness = Harness(max_batch_rows=4)
    other = harness.submit(account="b", step_count=100)
    for _ in range(20):
        harness.submit(account="a", step_count=4, guidance_scale=1.0)
    harness.tick(40)
    # While b ran one guided row of two slots, a had the other two: equal shares all along.
    assert harness.finished("a") == 20
    assert other.completed_step_count == 40


def test_a_higher_priority_has_twice_the_share_of_the_one_below() -> None:
    harness = Harness(max_batch_rows=2)
    for _ in range(60):
        harness.submit(account="free", priority=0, step_count=5)
        harness.submit(account="pro", priority=1, step_count=5)
    harness.tick(150)
    assert harness.finished("pro") == 20
    assert harness.finished("free") == 10


def test_within_an_account_the_higher_priority_goes_first() -> None:
    harness = Harness(max_batch_rows=2)
    harness.submit(step_count=3)
    urgent = harness.submit(step_count=9, priority=3)
    assert _ticks_until_done(harness, urgent) == 9


def test_a_deadline_that_is_near_goes_before_jobs_that_can_wait() -> None:
    harness = Harness(max_batch_rows=2, row_s=0.5)
    harness.submit(step_count=2)
    harness.run()
    waits = [harness.submit(step_count=10) for _ in range(3)]
    pressed = harness.submit(step_count=12, deadline=harness.clock.now + 14.0)
    assert _ticks_until_done(harness, pressed) == 12
    assert not any(sink_of(job).closed for job in waits)


def test_equal_jobs_run_to_completion_in_order_of_arrival() -> None:
    harness = Harness(max_batch_rows=2)
    jobs = [harness.submit(step_count=5) for _ in range(4)]
    assert [_ticks_until_done(harness, job) for job in jobs] == [5, 5, 5, 5]


def test_groups_of_two_accounts_get_equal_device_time_though_one_fills_its_batches() -> None:
    harness = Harness(max_batch_rows=16, call_s=1.0, row_s=0.0)
    other = AnalyticModel("other", clock=harness.clock, call_s=1.0)
    for _ in range(8):
        harness.submit(account="many", step_count=100)
    harness.submit(account="one", model=other, step_count=100)
    harness.tick(100)
    assert abs(len(other.calls) - len(harness.model.calls)) <= 2


def test_no_group_starves_within_an_account() -> None:
    harness = Harness(max_batch_rows=4)
    wide = harness.submit(step_count=20, width=128)
    for _ in range(400):
        harness.submit(step_count=2)
        harness.submit(step_count=2)
        harness.tick()
        if sink_of(wide).closed:
            break
    assert sink_of(wide).pictures


def test_rows_of_several_models_never_share_a_call() -> None:
    harness = Harness(max_batch_rows=8)
    other = AnalyticModel("other")
    for model in (harness.model, other):
        harness.submit(model=model, step_count=3)
    harness.run()
    assert harness.model.calls == other.calls == [2, 2, 2]


def test_started_rows_stay_below_the_bound_and_all_get_done() -> None:
    harness = Harness(max_batch_rows=2)
    scheduler = Scheduler(slots_of=lambda job: 2, claim=lambda job: True, max_started_rows=3)
    jobs = [harness.job(step_count=20 - i) for i in range(12)]
    done = 0
    for job in jobs:
        # Each newcomer is shorter than all before and would preempt them.
        scheduler.add(job, ticks_left=float("inf"))
        done += _advance(scheduler)
        assert scheduler.started_count <= 3
    for _ in range(400):
        done += _advance(scheduler)
    assert done == 12
    assert scheduler.started_count == 0


def _advance(scheduler: Scheduler) -> int:
    rows = scheduler.choose(lambda group: 0.0)
    for row in rows:
        row.call += 1
    scheduler.settle(rows, 1.0)
    finished = [row for row in rows if row.finished]
    for row in finished:
        scheduler.leave(row)
    return len(finished)


@pytest.mark.parametrize("seed", range(5))
def test_short_requests_among_long_ones_have_an_eighth_of_the_p99_of_one_at_a_time(
    seed: int,
) -> None:
    draw = random.Random(seed)
    arrivals = sorted((draw.uniform(0, 40), draw.random() < 0.5) for _ in range(120))
    latencies = _latencies_in_flight(arrivals)
    sequential = _latencies_one_at_a_time(arrivals)
    assert np.percentile(latencies, 99) <= np.percentile(sequential, 99) / 8


# What the embedded model costs on two CPU cores.
_CALL_S, _ROW_S = 0.0025, 0.0038
_LONG, _SHORT = 50, 4


def _latencies_in_flight(arrivals: list[tuple[float, bool]]) -> list[float]:
    """Latencies of the short requests under Poisson-like arrivals, on the model's clock."""
    harness = Harness(max_batch_rows=16, call_s=_CALL_S, row_s=_ROW_S)
    start = harness.clock.now
    pending = [(start + at, short) for at, short in arrivals]
    running: dict[Job, float] = {}
    latencies: list[float] = []
    while pending or running:
        while pending and (pending[0][0] <= harness.clock.now or not running):
            at, short = pending.pop(0)
            harness.clock.now = max(harness.clock.now, at)
            job = harness.submit(step_count=_SHORT if short else _LONG)
            running[job] = at
        harness.tick()
        for job in [job for job in running if sink_of(job).closed]:
            at = running.pop(job)
            if job.spec.step_count == _SHORT:
                latencies.append(harness.clock.now - at)
    return latencies


def _latencies_one_at_a_time(arrivals: list[tuple[float, bool]]) -> list[float]:
    free_at, latencies = 0.0, []
    for at, short in arrivals:
        steps = _SHORT if short else _LONG
        free_at = max(free_at, at) + steps * (_CALL_S + 2 * _ROW_S)
        if short:
            latencies.append(free_at - at)
    return latencies
