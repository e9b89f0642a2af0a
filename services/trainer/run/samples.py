"""Sample pictures of a run: always the same prompts and seeds, so that only the weights differ."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from services.trainer.run.components import Components
from services.trainer.run.reading import CheckedRun
from services.trainer.run.text import PromptEncoder, Text


def sample_prompts(run: CheckedRun) -> tuple[str, ...]:
    """What is drawn: the prompts of the configuration, else the instance prompt."""
    configuration = run.configuration
    return configuration.validation.prompts or (configuration.instance.prompt,)


def draw_samples(
    run: CheckedRun,
    components: Components,
    folder: Path,
    *,
    encode_prompts: PromptEncoder,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]],
) -> list[Path]:
    """Draw and save a PNG for every prompt; returns their paths, `0.png` and on.

    Modules are in evaluation mode meanwhile, and afterwards as they were.
    """
    section = run.configuration.validation
    pipeline = components.pipeline(device, with_text=False)
    modules = list(components.loaded.values())
    modes = [module.training for module in modules]
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    try:
        for module in modules:
            module.eval()
        for index, prompt in enumerate(sample_prompts(run)):
            with torch.no_grad(), precision():
                image = pipeline(
                    **_told(encode_prompts(["", prompt])),
                    height=run.side,
                    width=run.side,
                    num_inference_steps=section.step_count,
                    guidance_scale=section.guidance_scale,
                    generator=torch.Generator("cpu").manual_seed(section.seed),
                ).images[0]
            path = folder / f"{index}.png"
            image.save(path)
            paths.append(path)
    finally:
        components.drop("vae")  # 0.3 GiB that only samples need
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
    return paths


def _told(text: Text) -> dict[str, Tensor]:
    """A pipeline's arguments for the second prompt of two, away from the first."""
    told = {
        "negative_prompt_embeds": text.embeddings_BLD[:1],
        "prompt_embeds": text.embeddings_BLD[1:],
    }
    if text.pooled_BP is not None:
        told |= {
            "negative_pooled_prompt_embeds": text.pooled_BP[:1],
            "pooled_prompt_embeds": text.pooled_BP[1:],
        }
    return told
