"""What denoiser and decoder are calibrated with for 8 bits: the model's own runs.

Made by `model.load`; nothing is computed before a graph has to be quantised, once for each model.
Prompts come from the model's card, or are general ones, and a few runs of guided DDIM give the
inputs that the denoiser sees on its way and the latents that the decoder gets in the end.

Shape legend: N prompts of a run, C latent channels, h and w latent sides, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle

import torch
from torch import Tensor

from services.diffusion.conditioning import PromptTokenizer
from services.diffusion.families.card import ModelCard
from services.diffusion.families.sd1.components import Components, Denoiser, TextEncoder
from services.diffusion.families.sd1.layout import LATENT_CHANNEL_COUNT, Layout
from services.diffusion.model import ImageDefaults
from services.diffusion.samplers import advance, collate, plan, scale_input

RECIPE = "guided-ddim-1"
RUN_COUNT = 4
PROMPTS_PER_RUN = 8
STEP_COUNT = 12
_GENERAL_PROMPTS = (
    *("a photograph of a dog in the snow", "a portrait of an old woman, oil on canvas"),
    *("a city at night, neon lights, rain", "a bowl of fruit on a wooden table"),
    *("a mountain lake at sunrise", "a red sports car", "a robot reading a book, watercolour"),
    "an isometric drawing of a small house",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Runs:
    calls: list[tuple[Tensor, ...]] = field(default_factory=list)
    """Latents (2 N, C, h, w), timesteps (2 N,) and context (2 N, L, D) of denoiser calls."""
    latents: list[tuple[Tensor, ...]] = field(default_factory=list)
    """(N, C, h, w), one of each run."""


class CalibrationRuns:
    """A few runs of a model in torch, made when they are first asked for."""

    def __init__(
        self, parts: Components, layout: Layout, card: ModelCard, defaults: ImageDefaults
    ) -> None:
        self._parts, self._layout, self._defaults = parts, layout, defaults
        self._prompts = calibration_prompts(card)

    def denoiser_inputs(self) -> list[tuple[Tensor, ...]]:
        """Every second call of every run."""
        return self._runs.calls

    def decoder_inputs(self) -> list[tuple[Tensor, ...]]:
        """The finished latents of every run."""
        return self._runs.latents

    @cached_property
    def _runs(self) -> _Runs:
        runs = _Runs()
        with torch.inference_mode():
            for run in range(RUN_COUNT):
                self._run(self._prompts[run::RUN_COUNT], run, runs)
        return runs

    def _run(self, prompts: Sequence[str], run: int, runs: _Runs) -> None:
        denoiser = Denoiser(self._parts.unet)
        trajectory = plan("ddim", self._layout.schedule, STEP_COUNT)
        context = self._encode([*prompts, *[""] * len(prompts)])
        scale = self._layout.vae_scale
        shape = (self._defaults.height // scale, self._defaults.width // scale)
        generator = torch.Generator().manual_seed(run)
        latents = torch.randn(
            (len(prompts), LATENT_CHANNEL_COUNT, *shape), generator=generator
        ).mul(trajectory.initial_scale)
        memory = torch.zeros_like(latents)
        for call in range(trajectory.call_count):
            step = collate([(trajectory, call)] * len(prompts))
            inputs = (
                scale_input(latents, step).repeat(2, 1, 1, 1),
                step.timesteps_B.repeat(2),
                context,
            )
            if call % 2 == run % 2:
                runs.calls.append(inputs)
            conditional, unconditional = denoiser(*inputs).chunk(2)
            guided = unconditional + self._defaults.guidance_scale * (conditional - unconditional)
            latents, memory = advance(latents, memory, guided, None, step)
        runs.latents.append((latents,))

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        tokenizer = PromptTokenizer(self._parts.tokenizer, window=self._layout.token_window)
        ids = torch.tensor([tokenizer.ids(prompt) for prompt in prompts])
        context: Tensor = TextEncoder(self._parts.text_encoder)(ids)
        return context


def calibration_prompts(card: ModelCard) -> list[str]:
    """Prompts for all runs: evenly from the card's vocabulary, with its styles and backgrounds."""
    if card.vocabulary is None or not card.vocabulary.concepts:
        return [*_GENERAL_PROMPTS] * RUN_COUNT
    words, count = card.vocabulary, RUN_COUNT * PROMPTS_PER_RUN
    concepts = [words.concepts[index * len(words.concepts) // count] for index in range(count)]
    styles = cycle(["", *(f"{style} " for style in words.styles)])
    backgrounds = cycle(["", *(f" on a {colour} background" for colour in words.backgrounds)])
    return ["".join(parts) for parts in zip(styles, concepts, backgrounds, strict=False)]
