"""Draws with the shipped folder, through the stock pipeline, at the settings its card recommends.

Called by `evaluate` and `sheets`' callers. Does not rate what it draws.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.recipe.export import Defaults
from models.recipe.libraries import StableDiffusionPipeline

BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One picture to draw."""

    prompt: str
    seed: int


class Painter:
    """The stock pipeline on the folder that ships."""

    def __init__(
        self, folder: Path, settings: Defaults | None = None, *, precision: str = "float32"
    ) -> None:
        """Load `folder`; `settings` None means those in its `limner.json`.

        `precision` is what the graphs compute in: `float32`, or `bfloat16` by autocast.
        """
        self.precision = precision
        self.settings = settings or read_defaults(folder)
        self.pipeline = StableDiffusionPipeline.from_pretrained(str(folder))
        self.pipeline.set_progress_bar_config(disable=True)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline.to(self.device)

    def draw(self, orders: Sequence[Order], batch: int = BATCH) -> np.ndarray:
        """Pictures in the order asked for: uint8 [N, 128, 128, 3]."""
        return np.concatenate([self._draw_batch(part) for part in _parts(orders, batch)])

    def _draw_batch(self, orders: Sequence[Order]) -> np.ndarray:
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")
        with autocast:
            pictures: np.ndarray = self.pipeline(
                [order.prompt for order in orders],
                num_inference_steps=self.settings.step_count,
                guidance_scale=self.settings.guidance_scale,
                generator=[torch.Generator().manual_seed(order.seed) for order in orders],
                output_type="np",
            ).images
        return (pictures * 255.0).round().astype(np.uint8)


def read_defaults(folder: Path) -> Defaults:
    """The recommended settings in a folder's `limner.json`."""
    values = json.loads((folder / "limner.json").read_text())["defaults"]
    return Defaults(
        step_count=values["step_count"],
        guidance_scale=values["guidance_scale"],
        sampler=values["sampler"],
    )


def _parts(orders: Sequence[Order], size: int) -> Iterator[Sequence[Order]]:
    for start in range(0, len(orders), size):
        yield orders[start : start + size]
