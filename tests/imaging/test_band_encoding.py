"""Files that are written band by band hold every pixel, their profile, and nothing else."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from services.imaging.band_encoding import PictureLayout, open_band_encoder
from services.imaging.encoding import EncodedImage, ImageFormatName
from services.imaging.png_rows import PngRows


def _encode(
    pixels: np.ndarray, format_name: ImageFormatName, *, band: int = 7, icc: bytes | None = None
) -> EncodedImage:
    height, width, channel_count = pixels.shape
    layout = PictureLayout(width=width, height=height, channel_count=channel_count, icc_profile=icc)
    encoder = open_band_encoder(layout, format_name)
    for start in range(0, height, band):
        encoder.write(pixels[start : start + band])
    return encoder.finish()


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channel_count=st.sampled_from([1, 2, 3, 4]),
    band=st.integers(1, 40),
    smooth=st.booleans(),
)
def test_a_png_in_bands_returns_every_pixel(
    height: int, width: int, channel_count: int, band: int, smooth: bool
) -> None:
    generator = np.random.default_rng(height * 41 + width)
    pixels = generator.integers(0, 256, (height, width, channel_count), dtype=np.uint8)
    if smooth:
        pixels = np.cumsum(pixels // 64, axis=0, dtype=np.uint8)
    image = _opened(_encode(pixels, "png", band=band).data)
    assert image.mode == ("L", "LA", "RGB", "RGBA")[channel_count - 1]
    assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("format_name", ["jpeg", "webp"])
@pytest.mark.parametrize("channel_count", [1, 3, 4])
def test_lossy_formats_stay_close(format_name: ImageFormatName, channel_count: int) -> None:
    rows, columns = np.mgrid[0:48, 0:64]
    planes = [rows * 5, columns * 3, rows + columns, np.full_like(rows, 255)]
    pixels = np.stack(planes[:channel_count], axis=2).astype(np.uint8)
    file = _encode(pixels, format_name)
    image = _opened(file.data)
    colours = min(channel_count, 3)
    shown = np.asarray(image.convert("L" if channel_count == 1 else "RGB")).reshape(48, 64, -1)
    assert np.abs(shown.astype(int) - pixels[:, :, :colours].astype(int)).mean() < 3
    assert (file.width, file.height, file.mime_type) == (64, 48, f"image/{format_name}")


def test_transparency_lies_on_white_in_a_jpeg_and_stays_in_a_webp() -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    assert np.asarray(_opened(_encode(pixels, "jpeg").data)).min() > 250
    webp = np.asarray(_opened(_encode(pixels, "webp").data))
    assert webp.shape == (16, 16, 4)
    assert webp[:, :, 3].max() == 0


@pytest.mark.parametrize("format_name", ["png", "jpeg", "webp"])
def test_the_profile_goes_into_the_file(format_name: ImageFormatName) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.zeros((8, 8, 3), np.uint8)
    assert _opened(_encode(pixels, format_name, icc=profile).data).info["icc_profile"] == profile
    assert "icc_profile" not in _opened(_encode(pixels, format_name).data).info


@pytest.mark.parametrize("format_name", ["png", "jpeg"])
def test_a_file_with_missing_rows_is_not_handed_out(format_name: ImageFormatName) -> None:
    layout = PictureLayout(width=4, height=8, channel_count=3)
    encoder = open_band_encoder(layout, format_name)
    encoder.write(np.zeros((7, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="rows are missing"):
        encoder.finish()


def test_more_rows_than_announced_are_refused() -> None:
    rows = PngRows(width=4, height=2, channel_count=3)
    with pytest.raises(ValueError, match="3 rows for the 2"):
        rows.write(np.zeros((3, 4, 3), np.uint8))


def test_a_png_needs_memory_for_its_file_and_not_for_its_pixels() -> None:
    width, height, band = 2000, 3000, 100
    encoder = open_band_encoder(PictureLayout(width=width, height=height, channel_count=3), "png")
    rows = np.zeros((band, width, 3), np.uint8)
    rows[:, :, 1] = np.arange(width) // 8
    tracemalloc.start()
    try:
        for _ in range(height // band):
            encoder.write(rows)
        file = encoder.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    raw = width * height * 3
    assert len(file.data) < raw / 50
    assert peak < raw / 2
