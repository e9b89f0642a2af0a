"""Colour models to what networks know: 8-bit gray or RGB, with alpha beside it.

Called by `decoding` alone, with a loaded picture. A profile is kept where it still describes the
colours and dropped where it does not.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

_MAX_PROFILE_BYTES = 4 * 2**20
_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}
# Side of the squares whose mean colour fills pixels that are wholly transparent.
_BLEED = 8
# Rows that are filled at a time: their copies are what that costs in memory.
_STRIP = 64 * _BLEED


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SettledColours:
    """A picture in mode L, LA, RGB or RGBA."""

    image: Image.Image
    icc_profile: bytes | None
    converted_to_srgb: bool


def settle_colours(image: Image.Image, *, has_16_bits: bool) -> SettledColours:
    """Convert a loaded picture of any mode that PNG, JPEG and WebP have.

    Raises ValueError for a mode that none of them has.
    """
    profile = _usable_profile(image)
    if image.mode == "CMYK":
        return SettledColours(
            image=_srgb_from_cmyk(image, profile), icc_profile=None, converted_to_srgb=True
        )
    settled = _eight_bits(image, has_16_bits=has_16_bits)
    if settled.mode in ("LA", "RGBA"):
        settled = _with_colour_under_transparency(settled)
    if profile is not None and profile[1] != _SPACES[settled.mode]:
        profile = None
    return SettledColours(
        image=settled,
        icc_profile=None if profile is None else profile[0],
        converted_to_srgb=False,
    )


def _eight_bits(image: Image.Image, *, has_16_bits: bool) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    # The transparent colour of a 16-bit file is in 16 bits, which are gone.
    has_key = "transparency" in image.info and not has_16_bits
    match image.mode:
        case "P":
            return image.convert("RGBA" if has_key else "RGB")
        case "1" | "L":
            return image.convert("LA") if has_key else image.convert("L")
        case "RGB":
            return image.convert("RGBA") if has_key else image
        case "LA" | "RGBA":
            return image
        case "PA":
            return image.convert("RGBA")
        case mode:
            raise ValueError(f"pictures of mode {mode} are not supported")


def _usable_profile(image: Image.Image) -> tuple[bytes, str] | None:
    """The embedded profile and its colour space; None where there is none that can be read."""
    data = image.info.get("icc_profile")
    if not data or len(data) > _MAX_PROFILE_BYTES:
        return None
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(data))
    except (ImageCms.PyCMSError, OSError, TypeError):
        return None
    return data, profile.profile.xcolor_space.strip()


def _srgb_from_cmyk(image: Image.Image, profile: tuple[bytes, str] | None) -> Image.Image:
    if profile is not None and profile[1] == "CMYK":
        try:
            converted = ImageCms.profileToProfile(
                image,
                ImageCms.getOpenProfile(io.BytesIO(profile[0])),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except ImageCms.PyCMSError:
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def _with_colour_under_transparency(image: Image.Image) -> Image.Image:
    """Give wholly transparent pixels of `image` the colour around them.

    What lies there is arbitrary, usually black, and a network would draw it into the edges. Done in
    strips, which see as far as colour spreads into their neighbours.
    """
    alpha_range = image.getextrema()[-1]
    assert isinstance(alpha_range, tuple), "there is a range for each band"
    if alpha_range[0] > 0:
        return image
    for top in range(0, image.height, _STRIP):
        bottom = min(top + _STRIP, image.height)
        first, last = max(0, top - _BLEED), min(bottom + _BLEED, image.height)
        seen = _filled(image.crop((0, first, image.width, last)))
        strip = seen.crop((0, top - first, image.width, bottom - first))
        image.paste(strip.convert(image.mode), (0, top))
    return image


def _filled(strip: Image.Image) -> Image.Image:
    colour = strip.convert("RGBA")
    pixels = np.array(colour)
    small = colour.convert("RGBa").reduce(_BLEED)
    nearby = np.asarray(small.resize(colour.size, Image.Resampling.BILINEAR).convert("RGBA"))
    hidden = (pixels[:, :, 3] == 0) & (nearby[:, :, 3] > 0)
    pixels[hidden, :3] = nearby[hidden, :3]
    return Image.fromarray(pixels)
