"""Pixels survive their codec, and only what was given is written beside them."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from services.imaging.encoding import MIME_TYPES, ImageEncoder, ImageFormatName, encode_image


def _gradient(height: int = 40, width: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 3, rows + columns], axis=2).astype(np.uint8)


def _decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_png_returns_every_pixel() -> None:
    pixels = _gradient()
    image = encode_image(pixels, "png")
    assert np.array_equal(_decoded(image.data), pixels)
    assert (image.width, image.height) == (64, 40)


@pytest.mark.parametrize("format_name", ["jpeg", "webp"])
def test_lossy_formats_stay_close_to_the_pixels(format_name: ImageFormatName) -> None:
    pixels = _gradient()
    image = encode_image(pixels, format_name)
    difference = np.abs(_decoded(image.data).astype(int) - pixels.astype(int))
    assert difference.mean() < 2.0
    assert image.mime_type == MIME_TYPES[format_name]


def test_text_is_written_into_png_and_into_no_other_format() -> None:
    text = {"parameters": "Steps: 4, Größe: ½"}
    png = encode_image(_gradient(), "png", text=text)
    assert Image.open(io.BytesIO(png.data)).info["parameters"] == text["parameters"]
    for format_name in ("jpeg", "webp"):
        assert b"Steps" not in encode_image(_gradient(), format_name, text=text).data


async def test_the_encoder_gives_the_same_bytes_for_many_at_once() -> None:
    pictures = [np.roll(_gradient(), shift, axis=0) for shift in range(8)]
    encoder = ImageEncoder()
    try:
        images = await asyncio.gather(*(encoder.encode(picture, "png") for picture in pictures))
    finally:
        encoder.close()
    assert [i.data for i in images] == [encode_image(p, "png").data for p in pictures]
