"""Turns drawings into training views: RGBA pictures with varied pose, on any background.

Called by every training stage. A *view* is one pose of one drawing (scale, shift) as premultiplied
RGBA, so that compositing on a colour is one multiply-add. The first views of every drawing are in
the same few poses, which are all that the denoiser sees, so that it can settle on one early.
Nothing is mirrored: mixed with mirrored views, a cat gets two tails. Does not write captions.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.recipe.captions import STYLES, Concept, load_concepts
from models.recipe.pack import Artist, unpacked
from models.recipe.workdir import WorkDir

SOURCE_SIZE = 256
IMAGE_SIZE = 128
POSES: tuple[tuple[float, int, int], ...] = (
    (0.9, 0, 0),
    (0.98, 0, 0),
    (0.8, 0, 0),
    (0.84, -8, 4),
    (0.84, 8, -4),
)
"""Scale and shift to the right and down, in pixels, of the first views; number 0 is centred."""
VIEW_COUNT = 8
MIN_SCALE, MAX_SCALE = 0.78, 0.98
MAX_SHIFT_PX = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One original: concept index into `Dataset.concepts` and style name."""

    concept_index: int
    style: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All views of all drawings.

    `views`: uint8 [drawing, view, 4, 128, 128], premultiplied; the first are in `POSES`.
    """

    concepts: tuple[Concept, ...]
    drawings: tuple[Drawing, ...]
    views: np.ndarray

    def composite(self, drawing: int, view: int, colour: tuple[int, int, int]) -> Tensor:
        """One view on a flat background: float32 [3, 128, 128] in [-1, 1]."""
        picture = torch.from_numpy(np.array(self.views[drawing, view]))
        return composite(picture[None], torch.tensor([colour]))[0]

    @cached_property
    def places(self) -> dict[tuple[int, str], int]:
        """Indexes into `drawings` by concept index and style."""
        return {(d.concept_index, d.style): place for place, d in enumerate(self.drawings)}

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """What each drawing shows: the first concept that has the same drawing in its style.

        Fluent draws a few things alike, bit for bit: cat face and grinning cat, optical disk and
        DVD. Nobody can tell them apart, so either name is right.
        """
        first: dict[tuple[str, bytes], int] = {}
        labels = []
        for drawing, views in zip(self.drawings, self.views, strict=True):
            picture = hashlib.sha256(views[0].tobytes()).digest()
            labels.append(first.setdefault((drawing.style, picture), drawing.concept_index))
        return tuple(labels)


def composite(views_B4HW: Tensor, colours_B3: Tensor) -> Tensor:
    """Lay premultiplied uint8 views over 8-bit colours; float32 [B, 3, H, W] in [-1, 1]."""
    rgba = views_B4HW.float()
    opacity = rgba[:, 3:] / 255.0
    blended = rgba[:, :3] + colours_B3.float()[:, :, None, None] * (1.0 - opacity)
    return blended.clamp(0.0, 255.0) / 127.5 - 1.0


def ink(view_4HW: Tensor, style: str, background: str | None) -> Tensor:
    """A premultiplied view, 0 to 255, with lines turned white where black would not show."""
    if style != "line" or background != "black":
        return view_4HW
    return view_4HW[3:].expand(4, -1, -1).clone()


def pose(source: Image.Image, scale: float, shift: tuple[int, int]) -> np.ndarray:
    """Place a premultiplied source on a 128 px canvas; uint8 [4, 128, 128]."""
    side = round(IMAGE_SIZE * scale)
    small = source.resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBa", (IMAGE_SIZE, IMAGE_SIZE))
    corner = (IMAGE_SIZE - side) // 2
    canvas.paste(small, (corner + shift[0], corner + shift[1]))
    return np.asarray(canvas).transpose(2, 0, 1)


def draw_views(rgba: np.ndarray, count: int, random: Random) -> np.ndarray:
    """Views of one drawing, uint8 [count, 4, 128, 128]: first `POSES`, then poses at random."""
    source = Image.fromarray(rgba, "RGBA").convert("RGBa")
    views = [pose(source, scale, (right, down)) for scale, right, down in POSES[:count]]
    while len(views) < count:
        shift = (
            random.randint(-MAX_SHIFT_PX, MAX_SHIFT_PX),
            random.randint(-MAX_SHIFT_PX, MAX_SHIFT_PX),
        )
        views.append(pose(source, random.uniform(MIN_SCALE, MAX_SCALE), shift))
    return np.stack(views)


def load_dataset(work_dir: Path) -> Dataset:
    """Read the cached views, building them first when absent."""
    index_path = work_dir / "views.json"
    if not index_path.exists():
        build_views(work_dir)
    index = json.loads(index_path.read_text())
    concepts = load_concepts()
    labels = [concept.label for concept in concepts]
    if index["labels"] != labels:
        raise ValueError(f"{index_path} was built from another vocabulary: remove {work_dir}")
    drawings = tuple(Drawing(concept_index=c, style=s) for c, s in index["drawings"])
    views = np.load(work_dir / "views.npy", mmap_mode="r")
    return Dataset(concepts=concepts, drawings=drawings, views=views)


def find_artist(work: WorkDir) -> Artist:
    """Draws from the packed file if there is one, else from packages, fetched if need be."""
    if work.drawings.exists():
        return unpacked(work.drawings)
    # Rasterising and fetching are for the machine that has them.
    from models.recipe.sources import fetched

    return fetched(work.root / "raw")


def build_views(work_dir: Path, view_count: int = VIEW_COUNT, seed: int = 0) -> None:
    """Fetch, decode and pose every drawing; writes `views.npy` and `views.json`."""
    concepts = load_concepts()
    draw = find_artist(WorkDir(root=work_dir))
    random = Random(seed)
    drawings = [(index, style) for index in range(len(concepts)) for style in STYLES]
    shape = (len(drawings), view_count, 4, IMAGE_SIZE, IMAGE_SIZE)
    partial = work_dir / "views.partial.npy"
    views = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
    for place, (concept_index, style) in enumerate(drawings):
        rgba = draw(style, concepts[concept_index].label, SOURCE_SIZE)
        views[place] = draw_views(rgba, view_count, random)
    views.flush()
    os.replace(partial, work_dir / "views.npy")
    index = {"labels": [concept.label for concept in concepts], "drawings": drawings}
    (work_dir / "views.json").write_text(json.dumps(index))
