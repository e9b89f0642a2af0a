"""What fails in the model ends the requests concerned and no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from services.diffusion.batching import Job
from services.runtime.errors import InternalError
from tests.diffusion.batching.doubles import Harness, prompt_value, sink_of


class Fault:
    """Raises when a batch of `stage` holds the row of `prompt`."""

    def __init__(self, prompt: str, stage: str, error: Exception) -> None:
        self.value = torch.tensor(prompt_value(prompt))
        self.stage = stage
        self.error = error

    def __call__(self, stage: str, rows: Tensor) -> None:
        if stage == self.stage and bool((rows == self.value).any()):
            raise self.error


def _assert_only_bad_failed(harness: Harness, bad: Job, good: list[Job]) -> None:
    harness.run()
    assert isinstance(sink_of(bad).error, InternalError)
    assert "secret" not in str(sink_of(bad).error)
    assert all(sink_of(job).error is None and sink_of(job).pictures for job in good)
    assert harness.metric("diffusion_images_total", model="analytic", outcome="failed") == 1
    later = harness.submit()
    harness.run()
    assert sink_of(later).pictures


@pytest.mark.parametrize("stage", ["text", "denoise"])
@pytest.mark.parametrize("error", [RuntimeError("secret"), torch.OutOfMemoryError("secret")])
def test_a_call_that_raises_ends_only_the_request_that_makes_it_raise(
    stage: str, error: Exception
) -> None:
    harness = Harness(max_batch_rows=16)
    harness.model.fault = Fault("bad", stage, error)
    good = [harness.submit(prompt="good", seed=seed) for seed in range(3)]
    bad = harness.submit(prompt="bad")
    _assert_only_bad_failed(harness, bad, good)


def test_the_pictures_of_rows_beside_a_fault_are_what_they_would_have_been() -> None:
    pictures = []
    for fault in (None, Fault("bad", "denoise", RuntimeError("boom"))):
        harness = Harness(max_batch_rows=16)
        if fault:
            harness.model.fault = fault
        job = harness.submit(sampler="euler_ancestral", seed=3, prompt="good")
        harness.submit(prompt="bad")
        harness.run()
        pictures.append(sink_of(job).pictures[0])
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_row_that_turns_nan_ends_alone_even_on_its_last_call(guidance_scale: float) -> None:
    for step_count in (1, 5):
        harness = Harness(max_batch_rows=16)
        harness.model.poison = torch.tensor(prompt_value("bad")).item()
        good = [harness.submit(prompt="good", step_count=5)]
        bad = harness.submit(prompt="bad", step_count=step_count, guidance_scale=guidance_scale)
        harness.tick()
        assert isinstance(sink_of(bad).error, InternalError)
        _assert_only_bad_failed(harness, bad, good)


def test_a_decoder_that_fails_for_a_batch_is_tried_picture_by_picture() -> None:
    harness = Harness(max_batch_rows=16)
    jobs = [harness.submit(seed=seed) for seed in range(3)]

    def too_large(stage: str, rows: Tensor) -> None:
        if stage == "decode" and len(rows) > 1:
            raise torch.OutOfMemoryError("too large")

    harness.model.fault = too_large
    harness.run()
    assert all(sink_of(job).pictures for job in jobs)


def test_a_preview_that_fails_ends_its_request() -> None:
    harness = Harness()
    job = harness.submit(preview_interval=1)

    def no_previews(stage: str, rows: Tensor) -> None:
        if stage == "preview":
            raise RuntimeError("no previews")

    harness.model.fault = no_previews
    harness.run()
    assert isinstance(sink_of(job).error, InternalError)


def test_a_fault_of_the_batch_as_such_costs_nobody_anything() -> None:
    harness = Harness(max_batch_rows=16)
    job = harness.submit(sample_count=3, step_count=4)
    other = harness.submit(step_count=4)

    def fail_once(stage: str, rows: Tensor) -> None:
        if stage == "denoise" and len(harness.model.calls) == 3:
            raise RuntimeError("once, for the whole batch")

    harness.model.fault = fail_once
    harness.run()
    # The batch failed once; each row was then computed alone, so that nobody lost anything.
    assert sink_of(job).error is None
    assert len(sink_of(job).pictures) == 3
    assert sink_of(other).pictures


def test_a_lost_device_passes_through() -> None:
    harness = Harness()
    harness.submit()

    def lost(stage: str, rows: Tensor) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    harness.model.fault = lost
    with pytest.raises(torch.AcceleratorError):
        harness.tick()


def test_a_defect_of_ours_passes_through() -> None:
    harness = Harness()
    harness.submit()

    def defect(stage: str, rows: Tensor) -> None:
        raise TypeError("a defect")

    harness.model.fault = defect
    with pytest.raises(TypeError, match="a defect"):
        harness.tick()
