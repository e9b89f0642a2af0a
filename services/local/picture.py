"""A picture in the terminal, two pixels a character.

Used by `limner demo`, where nobody wants to look for an image viewer first.
"""

from __future__ import annotations

import io

from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

from services.client.cli.console import Console

_MAX_WIDTH = 48
_UPPER_HALF = "▀"


def can_show(console: Console) -> bool:
    """Tell whether the terminal has the colours for it."""
    return console.is_terminal and console.color_system in {"256", "truecolor"}


def in_half_blocks(data: bytes, max_width: int = _MAX_WIDTH) -> Text:
    """Return an encoded picture as lines of half blocks, at most `max_width` characters wide."""
    with Image.open(io.BytesIO(data)) as source:
        picture = source.convert("RGB")
    width = min(max_width, picture.width)
    height = max(2, round(picture.height * width / picture.width / 2) * 2)
    pixels = picture.resize((width, height), Image.Resampling.LANCZOS).load()
    assert pixels is not None, "a resized picture is in memory"
    text = Text()
    for y in range(0, height, 2):
        for x in range(width):
            style = Style(color=_color(pixels[x, y]), bgcolor=_color(pixels[x, y + 1]))
            text.append(_UPPER_HALF, style)
        text.append("\n")
    return text


def _color(pixel: float | tuple[int, ...]) -> Color:
    assert isinstance(pixel, tuple), "RGB pixels are tuples"
    red, green, blue = pixel
    return Color.from_rgb(red, green, blue)
