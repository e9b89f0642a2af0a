"""The picture table: a row for every model, the photographs above."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.personalisation.prompts import Order
from benchmarks.personalisation.subject import PHOTOGRAPHS, Pixels, draw_subject

_MAX_BYTES = 150_000
_SIDE, _LABEL_WIDTH, _HEAD = 112, 132, 42
# What a column shows: prompt group, background, seed, concept.
_COLUMNS: tuple[tuple[str, str, int, str | None], ...] = (
    ("subject", "white", 0, None),
    ("subject", "green", 0, None),
    ("subject", "purple", 1, None),
    ("class", "white", 0, "robot"),
    ("class", "green", 1, "robot"),
    ("other", "white", 0, "teddy bear"),
    ("other", "green", 0, "rocket"),
)


def write_sheet(
    path: Path, wanted: Sequence[Order], pictures: Mapping[str, Sequence[Pixels]]
) -> None:
    """Write the WebP file. Raises ValueError where it would take more than 150 kB."""
    chosen = [_find(wanted, column) for column in _COLUMNS]
    width = _LABEL_WIDTH + _SIDE * len(chosen)
    sheet = Image.new("RGB", (width, _HEAD + _SIDE * (1 + len(pictures))), "white")
    photographs = [draw_subject(pose) for pose in PHOTOGRAPHS]
    _row(sheet, 0, "the four pictures", photographs)
    for index, place in enumerate(chosen):
        _write(sheet, _LABEL_WIDTH + _SIDE * index + _SIDE // 2, _SIDE + 2, wanted[place].prompt)
    for row, (name, drawn) in enumerate(pictures.items()):
        _row(sheet, _SIDE + _HEAD + _SIDE * row, name, [drawn[place] for place in chosen])
    _save(sheet, path)


def _save(sheet: Image.Image, path: Path) -> None:
    for quality in range(90, 39, -5):
        encoded = io.BytesIO()
        sheet.save(encoded, "WEBP", quality=quality, method=6)
        if encoded.tell() <= _MAX_BYTES:
            path.write_bytes(encoded.getvalue())
            return
    raise ValueError(f"{path} would take more than {_MAX_BYTES} bytes")


def _find(wanted: Sequence[Order], column: tuple[str, str, int, str | None]) -> int:
    return next(
        index
        for index, order in enumerate(wanted)
        if (order.group, order.background, order.seed, order.concept) == column
    )


def _row(sheet: Image.Image, top: int, label: str, pictures: Sequence[Pixels]) -> None:
    _write(sheet, _LABEL_WIDTH // 2, top + _SIDE // 2 - 12, label)
    for index, pixels in enumerate(pictures):
        tile = Image.fromarray(np.asarray(pixels)).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (_LABEL_WIDTH + _SIDE * index, top))


def _write(sheet: Image.Image, centre: int, top: int, text: str) -> None:
    lines, words = [""], text.split()
    for word in words:
        if len(lines[-1]) + len(word) > 20:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    ImageDraw.Draw(sheet).multiline_text(
        (centre, top),
        "\n".join(lines),
        "#333333",
        ImageFont.load_default(9),
        anchor="ma",
        align="center",
        spacing=1,
    )
