"""Draws with a model's folder through the stock pipeline, at the settings of the base's card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.personalisation.subject import Pixels

_BATCH = 8


class Painter:
    """A model with DDIM, float32."""

    def __init__(self, folder: Path, card: Path) -> None:
        defaults = json.loads((card / "limner.json").read_text(encoding="utf-8"))["defaults"]
        self._step_count, self._guidance = defaults["step_count"], defaults["guidance_scale"]
        # diffusers' constructors have no types.
        pipeline_class: Any = diffusers.StableDiffusionPipeline
        scheduler_class: Any = diffusers.DDIMScheduler
        self._pipeline = pipeline_class.from_pretrained(folder, torch_dtype=torch.float32)
        self._pipeline.scheduler = scheduler_class.from_config(self._pipeline.scheduler.config)
        self._pipeline.set_progress_bar_config(disable=True)

    def draw(self, wanted: Iterable[tuple[str, int]]) -> list[Pixels]:
        """A picture for every prompt and seed, in their order."""
        pictures: list[Pixels] = []
        for batch in _batches(iter(wanted)):
            drawn = self._pipeline(
                [prompt for prompt, _ in batch],
                num_inference_steps=self._step_count,
                guidance_scale=self._guidance,
                generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
                output_type="np",
            ).images
            pictures += list((drawn * 255.0).round().astype(np.uint8))
        return pictures


def _batches(wanted: Iterator[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    while batch := list(islice(wanted, _BATCH)):
        yield batch
