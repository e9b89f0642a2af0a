"""The batcher with a real, if tiny, pipeline: same seed, same picture, and that of diffusers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from prometheus_client import CollectorRegistry

from services.diffusion.batching import Batcher, BatcherLimits, Job
from services.diffusion.families.loading import load_model
from services.diffusion.metrics import DiffusionMetrics
from services.diffusion.model import LoadedModel, ModelSpec, UInt8Array
from tests.diffusion.batching.doubles import ListSink, make_spec, sink_of
from tests.diffusion.tiny import write_emoji_like_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_emoji_like_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    cache = tmp_path_factory.mktemp("cache")
    return load_model(
        ModelSpec(
            name="tiny",
            path_or_hub_id=str(folder),
            runtime="torch",
            # More threads only get into each other's way in a model as small as this.
            thread_count=1,
            cache_dir=cache,
        )
    )


def _draw(model: LoadedModel, *specs: dict[str, object]) -> list[UInt8Array]:
    """Draw all specs, one joining every tick."""
    batcher = Batcher(
        limits=BatcherLimits(max_batch_rows=12), metrics=DiffusionMetrics(CollectorRegistry())
    )
    jobs = [Job(model=model, spec=make_spec(**spec), sink=ListSink()) for spec in specs]
    for job in jobs:
        batcher.submit(job)
        batcher.tick()
    while batcher.tick():
        pass
    return [sink_of(job).pictures[0] for job in jobs]


def test_the_same_seed_gives_the_same_picture_alone_and_in_a_batch(model: LoadedModel) -> None:
    spec = {"seed": 11, "step_count": 5, "sampler": "euler_ancestral", "prompt": "rocket"}
    others = [
        {"seed": n, "step_count": 2 + n, "sampler": "dpmpp_2m", "guidance_scale": float(n % 3)}
        for n in range(4)
    ]
    (alone,) = _draw(model, spec)
    together = _draw(model, others[0], spec, *others[1:])[1]
    # Convolutions may add up in another order in a larger batch: at most one level of 256.
    assert np.abs(alone.astype(int) - together.astype(int)).max() <= 1
    assert alone.std() > 1.0


def test_the_picture_is_the_one_that_diffusers_draws(model: LoadedModel, folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "rocket",
        negative_prompt="blue",
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(4),
        output_type="np",
    ).images[0]
    (picture,) = _draw(
        model, {"prompt": "rocket", "negative_prompt": "blue", "seed": 4, "step_count": 6}
    )
    difference = np.abs(picture.astype(float) - expected * 255.0)
    assert difference.max() <= 2.0
