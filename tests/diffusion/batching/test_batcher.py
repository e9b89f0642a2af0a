"""The batcher, tick by tick, with a model in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from services.diffusion.batching import BatcherLimits, SampleFinished, SamplePreviewed
from services.runtime.errors import DeadlineExceededError, QueueFullError, UnavailableError
from tests.diffusion.batching.doubles import Harness, latent_of, prompt_value, sink_of


def test_a_job_ends_with_its_picture_after_as_many_ticks_as_model_calls() -> None:
    harness = Harness(call_s=0.1)
    job = harness.submit(step_count=6)
    assert harness.run() == 6
    sink = sink_of(job)
    assert sink.closed
    assert sink.error is None
    assert sink.pictures[0].shape == (64, 64, 3)
    assert sink.progress == [1, 2, 3, 4, 5, 6]


def test_the_exact_denoiser_draws_the_constant_of_its_prompt() -> None:
    harness = Harness()
    harness.model.spread = 0.0
    job = harness.submit(prompt="a rocket", guidance_scale=1.0, step_count=20)
    harness.run()
    latent = latent_of(sink_of(job).pictures[0])
    assert np.allclose(latent, prompt_value("a rocket"), atol=1e-5)


def test_progress_counts_steps_not_model_calls() -> None:
    harness = Harness(call_s=0.1)
    job = harness.submit(sampler="heun", step_count=3)
    assert harness.run() == 5
    # Two calls a step, but for the last: a step is done with its second call.
    assert sink_of(job).progress == [1, 2, 3]


def test_progress_tells_the_first_and_the_last_step_and_no_more_than_10_a_second_between() -> None:
    harness = Harness(call_s=0.04, row_s=0.0)
    job = harness.submit(step_count=12)
    harness.run()
    assert sink_of(job).progress == [1, 4, 7, 10, 12]


def test_guided_rows_take_two_places_and_unguided_rows_one() -> None:
    harness = Harness()
    harness.submit(guidance_scale=3.0)
    harness.submit(guidance_scale=1.0)
    harness.tick()
    assert harness.model.calls == [3]


def test_rows_join_and_leave_at_every_tick() -> None:
    harness = Harness(max_batch_rows=16)
    harness.submit(step_count=4)
    harness.tick()
    harness.submit(step_count=2)
    harness.tick()
    harness.submit(step_count=2, guidance_scale=0.0)
    harness.run()
    assert harness.model.calls == [2, 4, 5, 3]


def test_a_request_for_several_samples_gives_one_picture_for_each_of_consecutive_seeds() -> None:
    harness = Harness()
    several = harness.submit(sample_count=3, seed=2**32 - 2)
    singles = [harness.submit(seed=seed) for seed in (2**32 - 2, 2**32 - 1, 0)]
    harness.run()
    pictures = sink_of(several).pictures
    assert sorted(pictures) == [0, 1, 2]
    for index, single in enumerate(singles):
        assert np.array_equal(pictures[index], sink_of(single).pictures[0])
    seeds = [e.seed for e in sink_of(several).events if isinstance(e, SampleFinished)]
    assert sorted(seeds) == [0, 2**32 - 2, 2**32 - 1]


def test_samples_of_one_request_are_delivered_as_each_finishes() -> None:
    harness = Harness(max_batch_rows=2)
    job = harness.submit(sample_count=2, step_count=3)
    harness.tick(4)
    assert len(sink_of(job).pictures) == 1
    harness.run()
    assert len(sink_of(job).pictures) == 2
    assert sink_of(job).progress[-1] == 6


def test_prompts_of_jobs_that_start_together_are_encoded_in_one_call_without_repeats() -> None:
    harness = Harness()
    harness.submit(prompt="a dog", negative_prompt="blur")
    harness.submit(prompt="a dog", negative_prompt="")
    harness.submit(prompt="a cat", guidance_scale=1.0)
    harness.run()
    assert harness.model.encode_calls == [["a dog", "blur", "", "a cat"]]


def test_one_tick_decodes_no_more_than_the_limit() -> None:
    harness = Harness(max_batch_rows=16, max_decode_rows=3)
    harness.submit(sample_count=8, step_count=1)
    harness.tick()
    assert harness.model.decode_calls == [3]
    harness.run()
    assert harness.model.decode_calls == [3, 3, 2]


def test_previews_come_at_the_interval_and_never_for_the_finished_picture() -> None:
    harness = Harness()
    job = harness.submit(step_count=6, preview_interval=2, sampler="heun")
    silent = harness.submit(step_count=6)
    harness.run()
    previews = [e for e in sink_of(job).events if isinstance(e, SamplePreviewed)]
    assert [(preview.index, preview.step) for preview in previews] == [(0, 2), (0, 4)]
    assert previews[0].pixels.shape == (32, 32, 3)
    assert not any(isinstance(e, SamplePreviewed) for e in sink_of(silent).events)


def test_a_preview_shows_the_clean_estimate_not_the_noisy_state() -> None:
    harness = Harness()
    harness.model.spread = 0.0
    job = harness.submit(prompt="a rocket", guidance_scale=1.0, step_count=8, preview_interval=1)
    harness.run()
    first = next(e for e in sink_of(job).events if isinstance(e, SamplePreviewed))
    estimate = latent_of(first.pixels, scale=4)
    assert np.allclose(estimate, prompt_value("a rocket"), atol=1e-4)


def test_guidance_extrapolates_from_the_unconditional_to_the_conditional_estimate() -> None:
    harness = Harness()
    harness.model.spread = 0.0
    job = harness.submit(
        prompt="a rocket", negative_prompt="a dog", guidance_scale=2.5, step_count=20
    )
    harness.run()
    unconditional = prompt_value("a dog")
    expected = unconditional + 2.5 * (prompt_value("a rocket") - unconditional)
    assert np.allclose(latent_of(sink_of(job).pictures[0]), expected, atol=1e-4)


def test_a_cancelled_row_is_gone_from_the_next_model_call() -> None:
    harness = Harness()
    stays, goes = harness.submit(), harness.submit()
    harness.tick(2)
    harness.batcher.withdraw(goes)
    harness.run()
    assert harness.model.calls == [4, 4, 2, 2, 2, 2]
    assert sink_of(stays).pictures
    assert not sink_of(goes).pictures
    assert harness.metric("diffusion_images_total", model="analytic", outcome="cancelled") == 1


def test_a_waiting_job_that_is_cancelled_frees_its_place_at_once_and_never_touches_the_model() -> (
    None
):
    harness = Harness(max_queued_requests=1)
    job = harness.submit()
    with pytest.raises(QueueFullError):
        harness.submit()
    harness.batcher.withdraw(job)
    assert harness.batcher.waiting_count == 0
    harness.submit(step_count=1)
    harness.run()
    assert harness.model.calls == [2]


def test_a_queue_is_full_for_a_small_share_while_it_has_room_for_a_larger_one() -> None:
    harness = Harness(max_queued_requests=8)
    for _ in range(2):
        harness.submit(account="free", queue_share=0.25)
    with pytest.raises(QueueFullError):
        harness.submit(account="another", queue_share=0.25)
    for _ in range(6):
        harness.submit(account="enterprise")
    with pytest.raises(QueueFullError):
        harness.submit(account="enterprise")


def test_a_running_job_past_its_deadline_ends_with_deadline_exceeded() -> None:
    harness = Harness(row_s=1.0)
    job = harness.submit(step_count=50, deadline=harness.clock.now + 5.0)
    harness.run()
    assert isinstance(sink_of(job).error, DeadlineExceededError)
    # 2 s a call: the third ends beyond the deadline, and there is no fourth.
    assert len(harness.model.calls) == 3


def test_a_waiting_job_past_its_deadline_ends_without_a_model_call() -> None:
    harness = Harness(max_batch_rows=2, row_s=1.0)
    harness.submit(step_count=4, priority=1)
    late = harness.submit(deadline=harness.clock.now + 3.0)
    harness.tick(3)
    assert isinstance(sink_of(late).error, DeadlineExceededError)
    assert harness.batcher.waiting_count == 0
    assert sink_of(late).progress == []


def test_a_full_queue_says_when_a_place_will_be_free_at_the_measured_speed() -> None:
    harness = Harness(max_batch_rows=2, max_queued_requests=2, row_s=0.5)
    harness.submit(step_count=10, priority=1)
    harness.tick(2)
    for _ in range(2):
        harness.submit(step_count=10)
    with pytest.raises(QueueFullError) as refused:
        harness.submit()
    # The mean waiting job takes 10 calls of 2 slots at half a second each.
    assert refused.value.retry_after_s == pytest.approx(10.0)
    assert harness.metric("diffusion_images_total", model="analytic", outcome="rejected") == 1


def test_queue_positions_are_told_when_they_change_and_no_more_often_than_the_interval() -> None:
    harness = Harness(max_batch_rows=2, row_s=0.001)
    harness.submit(step_count=3, priority=1)
    first, second = harness.submit(step_count=3), harness.submit(step_count=3)
    harness.tick()
    assert (sink_of(first).positions, sink_of(second).positions) == ([0], [1])
    harness.tick(4)
    assert sink_of(second).positions == [1]
    harness.clock.advance(1.0)
    harness.tick()
    assert sink_of(second).positions == [1, 0]
    assert sink_of(first).positions == [0]


def test_latent_shapes_do_not_share_a_call_but_both_get_done() -> None:
    harness = Harness()
    small, wide = harness.submit(), harness.submit(width=128)
    harness.run()
    assert sink_of(small).pictures[0].shape == (64, 64, 3)
    assert sink_of(wide).pictures[0].shape == (64, 128, 3)
    assert harness.model.calls == [2] * 12


def test_abort_ends_every_job_and_refuses_new_ones() -> None:
    harness = Harness(max_batch_rows=2)
    jobs = [harness.submit() for _ in range(3)]
    harness.tick()
    jobs.append(harness.submit())
    harness.batcher.abort(UnavailableError(reason="BACKEND_LOST"))
    assert all(isinstance(sink_of(job).error, UnavailableError) for job in jobs)
    with pytest.raises(UnavailableError):
        harness.submit()
    assert harness.tick() is False


def test_a_batch_too_small_for_a_guided_row_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        BatcherLimits(max_batch_rows=1)


def test_metrics_tell_what_was_done() -> None:
    harness = Harness(row_s=0.01)
    harness.submit(sample_count=2, step_count=3)
    harness.run()
    assert harness.metric("diffusion_images_total", model="analytic", outcome="finished") == 2
    assert harness.metric("diffusion_batch_size_sum") == 12
    assert harness.metric("diffusion_step_seconds_sum") == pytest.approx(0.12)
    assert harness.metric("diffusion_stage_seconds_count", stage="denoise") == 1
    assert harness.metric("diffusion_queue_depth") == 0
    assert harness.metric("diffusion_running") == 0
