"""Contact sheets: many pictures on one page, with captions or without.

Called by `evaluate`. Pictures are uint8 arrays [128, 128, 3]. Does not generate or choose any.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

Picture = np.ndarray

_CAPTION_HEIGHT = 26
_FONT_SIZE = 10
_CHARACTERS_PER_LINE = 24


def contact_sheet(
    pictures: Sequence[Picture],
    columns: int,
    *,
    captions: Sequence[str] = (),
    side: int | None = None,
) -> Image.Image:
    """Lay out `pictures` row by row, each `side` pixels wide (default: as it is)."""
    side = side or pictures[0].shape[0]
    height = side + (_CAPTION_HEIGHT if captions else 0)
    row_count = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, row_count * height), "white")
    for index, picture in enumerate(pictures):
        left, top = index % columns * side, index // columns * height
        tile = Image.fromarray(picture)
        if tile.width != side:
            tile = tile.resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(tile, (left, top))
        if captions:
            _write_caption(sheet, captions[index], left + side // 2, top + side)
    return sheet


def _write_caption(sheet: Image.Image, caption: str, centre: int, top: int) -> None:
    lines = textwrap.wrap(caption, _CHARACTERS_PER_LINE)[:2]
    font = ImageFont.load_default(_FONT_SIZE)
    ImageDraw.Draw(sheet).multiline_text(
        (centre, top + 1), "\n".join(lines), "#444444", font, anchor="ma", align="center", spacing=1
    )


def save_png(sheet: Image.Image, path: Path, max_bytes: int) -> None:
    """Write a PNG with as many bits a colour, 8 to 5, as fit in `max_bytes`.

    Raises ValueError, and writes nothing, when even that is too large.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for bits in (8, 7, 6, 5):
        data = _encoded(ImageOps.posterize(sheet, bits), "PNG", optimize=True)
        if len(data) <= max_bytes:
            path.write_bytes(data)
            return
    raise ValueError(f"{path} would take {len(data)} bytes, more than {max_bytes}")


def save_webp(sheet: Image.Image, path: Path, max_bytes: int) -> None:
    """Write a WebP at the highest quality, from 90 down to 40, that fits in `max_bytes`.

    Raises ValueError, and writes nothing, when none does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(90, 39, -5):
        data = _encoded(sheet, "WEBP", quality=quality, method=6)
        if len(data) <= max_bytes:
            path.write_bytes(data)
            return
    raise ValueError(f"{path} would take {len(data)} bytes, more than {max_bytes}")


def _encoded(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()
