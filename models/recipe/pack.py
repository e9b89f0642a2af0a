"""All drawings in one file of some 21 MB, for a machine that reaches no package registry.

Called by the command line to write it, and by `dataset`, which prefers it to fetching. Things in 3d
are stored slightly lossy, the other styles exactly; all of them smaller than their sources.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from models.recipe.captions import STYLES, Concept
from models.recipe.workdir import WorkDir

SIDE = 192
_QUALITY = 92

Artist = Callable[[str, str, int], np.ndarray]
"""Style, emoji label and side in pixels to straight-alpha RGBA, uint8 [side, side, 4]."""


def pack(work: WorkDir, concepts: Sequence[Concept], draw: Artist) -> None:
    """Write every drawing of every concept to `work.drawings`, atomically."""
    partial = work.drawings.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for concept in concepts:
            for style in STYLES:
                picture = Image.fromarray(draw(style, concept.label, SIDE), "RGBA")
                buffer = io.BytesIO()
                picture.save(buffer, "WEBP", lossless=style != "3d", exact=False, quality=_QUALITY)
                archive.writestr(_name(style, concept.label), buffer.getvalue())
    os.replace(partial, work.drawings)


def unpacked(path: Path) -> Artist:
    """Draws from a packed file; KeyError for what is not in it."""
    archive = zipfile.ZipFile(path)

    def draw(style: str, label: str, side: int) -> np.ndarray:
        with Image.open(io.BytesIO(archive.read(_name(style, label)))) as picture:
            small = (
                picture.convert("RGBA")
                .convert("RGBa")
                .resize((side, side), Image.Resampling.LANCZOS)
            )
        return np.asarray(small.convert("RGBA"))

    return draw


def _name(style: str, label: str) -> str:
    return f"{style}/{label.encode().hex()}.webp"
