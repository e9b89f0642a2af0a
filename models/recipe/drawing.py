"""Draws with a model's folder, through the stock pipeline, at the settings its card recommends.

Called by `evaluate`, `verdicts` and `proofs`. Does not rate what it draws.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from models.recipe.export import Defaults
from models.recipe.libraries import StableDiffusionPipeline

BATCH = 16
GPU_BATCH = 256
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""diffusers' class and options behind each of Limner's names, and UniPC."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One picture to draw."""

    prompt: str
    seed: int


class Painter:
    """The stock pipeline at one setting."""

    def __init__(
        self, pipeline: StableDiffusionPipeline, settings: Defaults, *, precision: str = "float32"
    ) -> None:
        """`precision` is what the graphs compute in: `float32`, or `bfloat16` by autocast."""
        self.precision, self.settings = precision, settings
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = pipeline.to(self.device)
        self.pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, folder: Path, *, precision: str = "float32") -> Painter:
        """The model in `folder`, at the settings in its `limner.json`."""
        pipeline = StableDiffusionPipeline.from_pretrained(str(folder))
        return cls(pipeline, read_defaults(folder), precision=precision)

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which the graphs compute in this painter's precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")

    def draw(
        self,
        orders: Sequence[Order],
        settings: Defaults | None = None,
        *,
        negative_prompt: str | None = None,
    ) -> np.ndarray:
        """Pictures in the order asked for: uint8 [N, 128, 128, 3]."""
        chosen = settings or self.settings
        batch = GPU_BATCH if self.device == "cuda" else BATCH
        self.pipeline.scheduler = sampler_for(chosen.sampler, self.pipeline.scheduler.config)
        parts = (self._draw(p, chosen, negative_prompt) for p in _parts(orders, batch))
        return np.concatenate(list(parts))

    def _draw(
        self, orders: Sequence[Order], settings: Defaults, negative_prompt: str | None
    ) -> np.ndarray:
        with self.autocast():
            pictures: np.ndarray = self.pipeline(
                [order.prompt for order in orders],
                negative_prompt=None
                if negative_prompt is None
                else [negative_prompt] * len(orders),
                num_inference_steps=settings.step_count,
                guidance_scale=settings.guidance_scale,
                generator=[torch.Generator().manual_seed(order.seed) for order in orders],
                output_type="np",
            ).images
        return (pictures * 255.0).round().astype(np.uint8)


def sampler_for(name: str, config: object) -> Any:
    """diffusers' scheduler for one of `SAMPLERS`, on the noise schedule of `config`."""
    class_name, options = SAMPLERS[name]
    return getattr(diffusers, class_name).from_config(config, **options)


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
