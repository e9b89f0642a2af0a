"""Pictures of strangers: every kind comes out right, and no bad file costs more than its header."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from services.imaging.decoding import DecodedImage, decode_image
from services.imaging.header import (
    UnusableImageError,
    exif_orientation,
    open_image,
    read_header,
)

# Pillow remarks on damaged metadata, of which there is a lot here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")

_LIMIT = 10**6


def _file(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def _decode(data: bytes) -> DecodedImage:
    return decode_image(data, max_pixel_count=_LIMIT)


def _photo(height: int = 24, width: int = 40) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 8, columns * 5, rows + columns], 2).astype(np.uint8))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _problem(data: bytes, limit: int = _LIMIT) -> str:
    with pytest.raises(UnusableImageError) as raised:
        decode_image(data, max_pixel_count=limit)
    return raised.value.problem


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_plain_modes_come_as_they_are(mode: str) -> None:
    channels = len(mode)
    pixels = np.random.default_rng(0).integers(1, 256, (24, 40, channels), dtype=np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    decoded = _decode(_file(image))
    assert np.array_equal(decoded.pixels, pixels)
    assert decoded.has_alpha == (mode in ("LA", "RGBA"))
    assert decoded.remarks == ()


def test_a_palette_becomes_rgb_and_its_transparency_alpha() -> None:
    palette = _photo().quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(_decode(_file(palette)).pixels, expected)
    keyed = _decode(_file(palette, transparency=palette.getpixel((0, 0))))
    assert keyed.pixels.shape == (24, 40, 4)
    assert keyed.pixels[0, 0, 3] == 0
    assert keyed.pixels[:, :, 3].max() == 255


def test_a_bitmap_becomes_gray_and_a_colour_key_alpha() -> None:
    bitmap = _photo().convert("1")
    expected = np.asarray(bitmap.convert("L"))
    assert np.array_equal(_decode(_file(bitmap)).pixels[:, :, 0], expected)
    keyed = _decode(_file(_photo(), transparency=(0, 0, 0)))
    assert keyed.pixels.shape == (24, 40, 4)
    assert keyed.pixels[0, 0, 3] == 0


def test_16_bits_are_reduced_to_8_and_said_so() -> None:
    wide = (np.arange(24 * 40, dtype=np.uint32) * 65).astype(np.uint16).reshape(24, 40)
    decoded = _decode(_file(Image.fromarray(wide)))
    expected = (wide.astype(np.float64) / 257).round()
    assert np.abs(decoded.pixels[:, :, 0] - expected).max() <= 0.5
    assert decoded.remarks == ("REDUCED_TO_8_BITS",)
    rows = b"".join(b"\0" + struct.pack(">6H", 0, 32896, 65535, 257, 514, 771) for _ in range(3))
    colour = _decode(_png(2, 3, depth=16, rows=rows))
    assert colour.pixels[0].tolist() == [[0, 128, 255], [1, 2, 3]]
    assert colour.remarks == ("REDUCED_TO_8_BITS",)


def test_cmyk_becomes_srgb_without_a_profile_that_no_longer_fits() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = _decode(_file(cmyk, "JPEG", quality=100))
    red, green, blue = (int(value) for value in decoded.pixels[8, 8])
    assert red > 200
    assert green < 60
    assert blue < 60
    assert decoded.icc_profile is None
    assert decoded.remarks == ("CONVERTED_TO_SRGB",)


def test_a_profile_is_kept_where_it_fits_and_dropped_where_it_does_not() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for format_name in ("PNG", "JPEG", "WEBP"):
        assert _decode(_file(_photo(), format_name, icc_profile=profile)).icc_profile == profile
    gray = _file(_photo().convert("L"), icc_profile=profile)
    assert _decode(gray).icc_profile is None
    assert _decode(_file(_photo(), icc_profile=b"not a profile")).icc_profile is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied_and_the_header_knows_it(
    orientation: int, format_name: str
) -> None:
    upright = _photo()
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what turns it into what is stored
    stored = upright
    if orientation in inverse:
        stored = upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}
    data = _file(stored, format_name, exif=exif, **options.get(format_name, {}))
    header = read_header(data)
    assert (header.width, header.height) == (40, 24)
    difference = _decode(data).pixels.astype(int) - np.asarray(upright).astype(int)
    assert np.abs(difference).max() <= (12 if format_name == "JPEG" else 0)


def test_exif_behind_the_pixels_of_a_png_is_found_without_decoding_them() -> None:
    stored = _photo().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, end = _file(stored), _chunk(b"IEND", b"")
    assert plain.endswith(end)
    late = plain.removesuffix(end) + _chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + end
    header = read_header(late)
    assert (header.width, header.height) == (40, 24)
    assert np.array_equal(_decode(late).pixels, np.asarray(_photo()))
    for data, expected in ((late, 6), (plain, 1), (plain + _chunk(b"none", b"") * 200_000, 1)):
        with open_image(data) as image:
            assert exif_orientation(image, data) == expected
            assert image.tile  # Pillow empties it when it decodes


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    data = _file(_photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert _decode(data).pixels.shape == (24, 40, 3)


def test_hidden_colour_does_not_leak_into_edges() -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[8:24, 8:24] = (250, 200, 150, 255)  # on transparent black
    decoded = _decode(_file(Image.fromarray(pixels)))
    assert np.array_equal(decoded.pixels[:, :, 3], pixels[:, :, 3])
    assert np.array_equal(decoded.pixels[8:24, 8:24], pixels[8:24, 8:24])
    # Premultiplying costs a level or two.
    assert np.abs(decoded.pixels[7, 12, :3] - np.array([250.0, 200.0, 150.0])).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_hidden_colour_is_replaced_across_the_strips_in_which_it_is_done(mode: str) -> None:
    # Rows 512 on begin a strip: what is seen lies in it, and what is hidden beside it above.
    pixels = np.zeros((1040, 16, 4), np.uint8)
    pixels[512:, :] = (200, 200, 200, 255)
    decoded = _decode(_file(Image.fromarray(pixels).convert(mode))).pixels
    assert np.array_equal(decoded[:, :, -1], pixels[:, :, 3])
    assert np.abs(decoded[510:512, :, 0] - 200.0).max() <= 2


def test_a_phones_jpeg_with_a_second_picture_is_its_first() -> None:
    second = Image.new("RGB", (8, 8), "red")
    data = _file(_photo(), "MPO", save_all=True, append_images=[second])
    assert _decode(data).pixels.shape == (24, 40, 3)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "REQUIRED"),
        (b"GIF89a" + bytes(64), "NOT_AN_IMAGE"),
        (b"%PDF-1.7", "NOT_AN_IMAGE"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "NOT_AN_IMAGE"),
        (b"\x89PNG\r\n\x1a\n", "BROKEN"),
        (b"\xff\xd8\xff\xe0", "BROKEN"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "BROKEN"),
        (_png(0, 4), "BROKEN"),
        (_png(4, 0), "BROKEN"),
        (_png(4, 4, rows=b""), "BROKEN"),
        (_png(4, 4, colour=5), "BROKEN"),
        (_file(Image.new("RGB", (64, 64)), "TIFF"), "NOT_AN_IMAGE"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, problem: str) -> None:
    assert _problem(data) == problem


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_picture_is_refused_and_not_filled_up(format_name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = _file(Image.fromarray(noise), format_name)
    assert _problem(data[: len(data) // 2]) == "BROKEN"


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_an_animation_is_refused(format_name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = _file(frames[0], format_name, save_all=True, append_images=frames[1:], duration=50)
    assert _problem(data) == "ANIMATED"


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    bomb = _png(50_000, 50_000, rows=bytes(2**20))
    assert len(bomb) < 5000
    assert read_header(bomb).pixel_count == 2_500_000_000
    assert _problem(bomb) == "TOO_LARGE"
    assert _problem(_file(_photo()), limit=24 * 40 - 1) == "TOO_LARGE"


def test_text_that_unpacks_to_much_more_is_refused() -> None:
    zipped = zlib.compress(bytes(8 * 2**20))
    data = _png(4, 4)
    at = data.index(b"IDAT") - 4
    bomb = data[:at] + _chunk(b"zTXt", b"key\0\0" + zipped) + data[at:]
    assert _problem(bomb) == "BROKEN"


@given(st.data())
def test_no_damage_raises_anything_else(data: st.DataObject) -> None:
    """Flipped bytes in real files: either a picture or a named problem."""
    format_name = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    file = bytearray(_file(_photo(), format_name))
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = _decode(bytes(file))
    except UnusableImageError:
        return
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.shape[2] in (1, 2, 3, 4)
