"""Stage 3: pictures of every drawing encoded once, so that the denoiser's steps cost no encoder.

Called by the command line. The first *chunk* shows every drawing centred, the second in other
poses, each with other colours and layouts, the third on further backgrounds. The text encoder
learns to describe what is centred, the denoiser from all there is. Of what is held out, completions
are encoded and never the drawing itself. Does not scale latents: `latent_scale` says by what the
denoiser and the pipeline do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from models.recipe.captions import (
    BACKGROUNDS,
    COUNTS,
    LAYOUTS,
    OBJECT_COLOURS,
    PLAIN,
    Concept,
    Scene,
)
from models.recipe.colours import natural_colour, paint
from models.recipe.dataset import POSES, Dataset, composite, ink
from models.recipe.heldout import COLOUR_CONCEPTS
from models.recipe.layouts import lay_out
from models.recipe.libraries import AutoencoderTiny
from models.recipe.parallel import Worker
from models.recipe.translator import Views, shown_views
from models.recipe.workdir import WorkDir

CENTRED = (
    *(("plain", 0), ("background", 0), ("background", 0)),
    *(("colour", 0), ("colour", 0), ("layout", 0), ("layout", 0)),
)
POSED = (
    *(("plain", 1), ("plain", 2), ("plain", 3), ("plain", 4)),
    *(("background", None), ("background", None), ("colour", None), ("layout", 0)),
)
ON_BACKGROUNDS = (("background", 0),) * 6
POSED_ON_BACKGROUNDS = (
    *(("background", 1), ("background", 2), ("background", 3), ("background", 4)),
    *(("colour", 1), ("colour", 2), ("colour", 3), ("colour", 4)),
)
_CHUNKS = (CENTRED, POSED, ON_BACKGROUNDS, POSED_ON_BACKGROUNDS)
"""Pictures of one drawing in the first chunks: kind and pose, None for any; then `POSED` again.

The third is for the text encoder: on a background that a thing was not shown on, the error of its
patches was a tenth higher (0.038 for 0.034, 3d). The fourth is for seeds to differ.
"""
WHITE_SHARE = 0.6
"""Of coloured things and of layouts; the others lie on a random colour."""
_BATCH = 24


@dataclass(frozen=True, kw_only=True)
class EncodedPictures:
    """Latents of pictures, what each shows, and of which drawing it is.

    `latents`: float16 [picture, 4, h, w]. `poses` are places in `dataset.POSES`.
    """

    latents: Tensor
    drawings: tuple[int, ...]
    poses: tuple[int, ...]
    scenes: tuple[Scene, ...]


def kind_of(scene: Scene) -> str:
    """Which share of the training a picture belongs to."""
    if scene.colour is not None:
        return "colour"
    if scene.layout != "whole":
        return "layout"
    return "plain" if scene == PLAIN else "background"


def latent_scale(latents: Tensor) -> float:
    """The pipeline's `scaling_factor`: one over the standard deviation of all latents."""
    return 1.0 / float(latents.float().std())


def work_scale(work: WorkDir) -> float:
    """The scale by the first chunk, so that it stays when more are encoded."""
    with np.load(work.latents(0)) as file:
        return latent_scale(torch.from_numpy(file["latents"]))


def draw_scene(kind: str, concept: Concept, natural: str | None, random: Random) -> Scene:
    """What a picture of a kind shows; a thing that has no main colour gets a background instead."""
    backgrounds = [name for name in BACKGROUNDS if name != "white"]
    behind = None if random.random() < WHITE_SHARE else random.choice(backgrounds)
    if kind == "plain":
        return Scene()
    if kind == "colour" and natural is not None:
        colours = [name for name in OBJECT_COLOURS if name != natural]
        return Scene(colour=random.choice(colours), background=behind)
    if kind == "layout":
        layouts = [name for name in LAYOUTS if name != "whole"]
        if not concept.is_countable:
            layouts = [name for name in layouts if name not in COUNTS]
        return Scene(layout=random.choice(layouts), background=behind)
    return Scene(background=random.choice(backgrounds))


def paintable_colour(dataset: Dataset, views: Views, index: int) -> str | None:
    """The colour of a drawing that may be shown in others; None for those that may not."""
    drawing = dataset.drawings[index]
    concept = dataset.concepts[drawing.concept_index]
    held_out = concept.label in COLOUR_CONCEPTS or not concept.colourless_names
    if held_out or drawing.style == "line":
        return None
    return natural_colour(torch.from_numpy(views(index, 0)).float())


def draw_picture(view_4HW: Tensor, style: str, scene: Scene) -> Tensor:
    """A premultiplied view, 0 to 255, as the scene wants it: float32 [3, 128, 128] in [-1, 1]."""
    view = ink(view_4HW, style, scene.background)
    if scene.colour is not None:
        view = paint(view, scene.colour)
    view = lay_out(view, scene.layout)
    colour = torch.tensor([BACKGROUNDS[scene.background or "white"]])
    return composite(view[None], colour)[0]


def encode_chunk(
    model: AutoencoderTiny, dataset: Dataset, work: WorkDir, number: int, worker: Worker
) -> None:
    """Encode one chunk, counted from 0, on one worker, and write it."""
    views = shown_views(dataset, work)
    random = Random(1000 + number)
    wanted = _CHUNKS[number] if number < len(_CHUNKS) else POSED
    scenes: list[Scene] = []
    poses: list[int] = []
    waiting: list[Tensor] = []
    done: list[Tensor] = []
    for index, drawing in enumerate(dataset.drawings):
        natural = paintable_colour(dataset, views, index)
        for kind, pose in wanted:
            scene = draw_scene(kind, dataset.concepts[drawing.concept_index], natural, random)
            pose = random.randrange(len(POSES)) if pose is None else pose
            view = torch.from_numpy(views(index, pose)).float()
            waiting.append(draw_picture(view, drawing.style, scene))
            scenes.append(scene)
            poses.append(pose)
        if len(waiting) >= _BATCH * worker.batch_factor or index + 1 == len(dataset.drawings):
            done.append(_encode(model, torch.stack(waiting), worker))
            waiting.clear()
    _write(
        work.latents(number),
        drawing_count=len(dataset.drawings),
        latents=torch.cat(done).half().numpy(),
        drawings=np.repeat(np.arange(len(dataset.drawings)), len(wanted)),
        poses=np.array(poses),
        scenes=np.array([[s.background or "", s.colour or "", s.layout] for s in scenes]),
    )


def load_latents(dataset: Dataset, chunks: Sequence[Path]) -> EncodedPictures:
    """All chunks together; ValueError when one is of other drawings or there is none."""
    latents: list[Tensor] = []
    drawings: list[int] = []
    poses: list[int] = []
    scenes: list[Scene] = []
    for path in chunks:
        with np.load(path) as file:
            if file["drawing_count"] != len(dataset.drawings):
                raise ValueError(f"{path} was encoded from other drawings: remove it")
            latents.append(torch.from_numpy(file["latents"]))
            drawings += file["drawings"].tolist()
            poses += file["poses"].tolist()
            scenes += [_read_scene(row) for row in file["scenes"].tolist()]
    if not latents:
        raise ValueError("no latents: run the stage `latents` first")
    return EncodedPictures(
        latents=torch.cat(latents),
        drawings=tuple(drawings),
        poses=tuple(poses),
        scenes=tuple(scenes),
    )


def _write(path: Path, **arrays: np.ndarray | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def _read_scene(row: list[str]) -> Scene:
    return Scene(background=row[0] or None, colour=row[1] or None, layout=row[2])


@torch.no_grad()
def _encode(model: AutoencoderTiny, pictures_BCHW: Tensor, worker: Worker) -> Tensor:
    pictures = pictures_BCHW.to(worker.device).contiguous(memory_format=torch.channels_last)
    with worker.autocast():
        latents: Tensor = model.encoder(pictures)
    return latents.float().cpu()
