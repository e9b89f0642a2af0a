"""Sheets that show what else the model can do: seeds, from pictures, in holes, outlines, without.

Called by the command line after `export`, and after `control` for the edges. Everything is drawn
by diffusers' stock pipelines from the folder at its recommended settings, at the first seeds;
prompts are examples that show the effect. Only pictures to pictures are made without guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.recipe.control import control_folder, edges
from models.recipe.drawing import Order, Painter
from models.recipe.libraries import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from models.recipe.measures import as_tensor
from models.recipe.sheets import contact_sheet, save_webp

STRENGTHS = (0.3, 0.5, 0.7)
GENTLE_GUIDANCE = 1.0
"""For pictures to pictures: with more the prompt wins sooner."""
MAX_BYTES = 150_000
HOLE = slice(60, 124)
"""Rows and columns of the square that is painted anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A picture by its prompt, and what to make of it."""

    source: str
    prompt: str


CHANGES = (
    Change(source="a red apple", prompt="a green apple"),
    Change(source="a line rocket", prompt="a rocket"),
    Change(source="a guitar", prompt="a violin"),
    Change(source="a cat on a blue background", prompt="a fox on a blue background"),
    Change(source="a dog face", prompt="a bear"),
)
INSERTIONS = (
    Change(
        source="a house on a light blue background",
        prompt="a smiling face in the bottom right corner on a light blue background",
    ),
    Change(
        source="a pine tree on a green background",
        prompt="a red apple in the bottom right corner on a green background",
    ),
    Change(
        source="a snowman on a pink background",
        prompt="a soccer ball in the bottom right corner on a pink background",
    ),
    Change(
        source="a castle on a purple background",
        prompt="a yellow heart in the bottom right corner on a purple background",
    ),
)
SEEDED = (
    *("a red apple", "a dog face", "a rocket", "a guitar"),
    *("a smiling face", "a cat on a blue background"),
)
SEEDS = range(4)
NEGATIVES = (
    ("a house", "a red house"),
    ("a dragon", "a green dragon"),
    ("a pig face", "a pink pig face"),
    ("a fox", "an orange fox"),
)
"""Prompts, each with a negative one."""
CONTROLS = (
    Change(source="a red apple", prompt="a tomato; a peach; a basketball"),
    Change(source="a dog face", prompt="a bear; a panda; a pig face"),
    Change(source="a smiling face", prompt="an angry face; a ghost; the earth"),
)
"""Each outline with three prompts."""


def image_to_image(painter: Painter) -> Image.Image:
    """Rows of a source and what becomes of it at growing strength."""
    captions = [
        text
        for change in CHANGES
        for text in (change.source, *(f"{change.prompt}, {s}" for s in STRENGTHS))
    ]
    return _sheet(draw_changes(painter, CHANGES), captions)


def draw_changes(painter: Painter, changes: Sequence[Change]) -> list[np.ndarray]:
    """The sources, and what becomes of them at each of `STRENGTHS`: uint8 [N, 128, 128, 3]."""
    pipeline = StableDiffusionImg2ImgPipeline(
        **painter.pipeline.components, requires_safety_checker=False
    )
    sources = _sources(painter, changes)
    columns = [sources]
    for strength in STRENGTHS:
        inputs = {"image": as_01(sources), "strength": strength}
        columns.append(_run(painter, pipeline, changes, guidance_scale=GENTLE_GUIDANCE, **inputs))
    return columns


def inpainting(painter: Painter) -> Image.Image:
    """Rows of a scene, the hole in it, and the scene with something new in the hole."""
    pipeline = StableDiffusionInpaintPipeline(
        **painter.pipeline.components, requires_safety_checker=False
    )
    sources = _sources(painter, INSERTIONS)
    mask = torch.zeros(len(sources), 1, *sources.shape[1:3])
    mask[:, :, HOLE, HOLE] = 1.0
    holes = sources.copy()
    holes[:, HOLE, HOLE] = 128
    filled = _run(
        painter, pipeline, INSERTIONS, image=as_01(sources), mask_image=mask, strength=1.0
    )
    captions = [t for i in INSERTIONS for t in (i.source, "the hole", i.prompt)]
    return _sheet([sources, holes, filled], captions)


def seeds(painter: Painter) -> Image.Image:
    """Rows of a prompt's pictures at different seeds."""
    drawn = [painter.draw([Order(prompt=p, seed=seed) for p in SEEDED]) for seed in SEEDS]
    return _sheet(drawn, [f"{prompt}, seed {seed}" for prompt in SEEDED for seed in SEEDS])


def negatives(painter: Painter) -> Image.Image:
    """Rows of two seeds: a prompt's picture, and the same with a negative prompt."""
    columns, captions = [], []
    for seed in (0, 1):
        orders = [Order(prompt=prompt, seed=seed) for prompt, _ in NEGATIVES]
        columns.append(painter.draw(orders))
        without = [
            painter.draw([order], negative_prompt=avoided)
            for order, (_, avoided) in zip(orders, NEGATIVES, strict=True)
        ]
        columns.append(np.concatenate(without))
    for prompt, avoided in NEGATIVES:
        captions += [prompt, f"without: {avoided}"] * 2
    return _sheet(columns, captions)


def edge_control(painter: Painter, folder: Path) -> Image.Image:
    """Rows of a source, its edges, and three other things in that outline."""
    control = ControlNetModel.from_pretrained(folder).to(painter.device)
    components = {**painter.pipeline.components, "controlnet": control}
    pipeline = StableDiffusionControlNetPipeline(**components, requires_safety_checker=False)
    sources = _sources(painter, CONTROLS)
    lines = edges(as_tensor(sources))
    columns = [sources, (lines * 255.0).byte().permute(0, 2, 3, 1).numpy()]
    prompts = [change.prompt.split("; ") for change in CONTROLS]
    for place in range(len(prompts[0])):
        asked = [
            Change(source=change.source, prompt=names[place])
            for change, names in zip(CONTROLS, prompts, strict=True)
        ]
        columns.append(_run(painter, pipeline, asked, image=lines))
    rows = zip(CONTROLS, prompts, strict=True)
    return _sheet(columns, [t for c, names in rows for t in (c.source, "edges", *names)])


def make_proofs(model: Path, docs: Path) -> None:
    """Write the sheets of the model in the folder `model`; edges only if it has a ControlNet."""
    painter, edges_folder = Painter.load(model), control_folder(model)
    save_webp(seeds(painter), docs / "seeds.webp", MAX_BYTES)
    save_webp(image_to_image(painter), docs / "image-to-image.webp", MAX_BYTES)
    save_webp(inpainting(painter), docs / "inpainting.webp", MAX_BYTES)
    save_webp(negatives(painter), docs / "negative-prompts.webp", MAX_BYTES)
    if edges_folder.exists():
        save_webp(edge_control(painter, edges_folder), docs / "edges.webp", MAX_BYTES)


def as_01(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] from 0 to 1, as the pipelines want them."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255.0


def _sources(painter: Painter, changes: Sequence[Change]) -> np.ndarray:
    return painter.draw([Order(prompt=change.source, seed=0) for change in changes])


def _run(
    painter: Painter, pipeline: Any, changes: Sequence[Change], **inputs: object
) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    with painter.autocast():
        pictures: np.ndarray = pipeline(
            [change.prompt for change in changes],
            num_inference_steps=painter.settings.step_count,
            generator=[torch.Generator().manual_seed(0) for _ in changes],
            output_type="np",
            **{"guidance_scale": painter.settings.guidance_scale, **inputs},
        ).images
    return (pictures * 255.0).round().astype(np.uint8)


def _sheet(columns: Sequence[np.ndarray], captions: Sequence[str]) -> Image.Image:
    tiles = [picture for row in zip(*columns, strict=True) for picture in row]
    return contact_sheet(tiles, len(columns), captions=captions)
