"""What a file that a stranger sent says of itself: format, size, frames; nothing is decoded.

Called by the services that take pictures and by the gateway, which prices them. The header is read
first and alone, so that a picture which is too large costs no memory.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from PIL import Image, UnidentifiedImageError

# The limit is ours and checked right after the header; Pillow's own would warn before it.
Image.MAX_IMAGE_PIXELS = None

ImageProblem = Literal["REQUIRED", "NOT_AN_IMAGE", "BROKEN", "ANIMATED", "TOO_LARGE"]

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What Pillow's parsers raise over damaged or malicious files."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_SIGNATURES: Mapping[str, tuple[int, bytes]] = MappingProxyType(
    {"PNG": (0, b"\x89PNG\r\n\x1a\n"), "JPEG": (0, b"\xff\xd8\xff"), "WEBP": (8, b"WEBP")}
)
_EXIF_ORIENTATION = 0x0112
_PNG_SIGNATURE_BYTES = 8
_CHUNK_FRAME_BYTES = 12  # size, name and checksum
# A picture of 32 MiB has about 4,000 of the usual 8 KiB; a hostile one could have millions.
_MOST_CHUNKS = 100_000
_SIDEWAYS = frozenset({5, 6, 7, 8})


class UnusableImageError(Exception):
    """A file that cannot be taken; the message says for people what is allowed and what came."""

    def __init__(self, problem: ImageProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """The size of a picture when it is upright, in pixels."""

    width: int
    height: int

    @property
    def pixel_count(self) -> int:
        """Width times height."""
        return self.width * self.height


def read_header(data: bytes) -> ImageHeader:
    """Check what a file is and how large; cheap, and independent of the number of its pixels.

    Raises `UnusableImageError`: REQUIRED, NOT_AN_IMAGE, BROKEN or ANIMATED.
    """
    with open_image(data) as image:
        width, height = image.size
        if exif_orientation(image, data) in _SIDEWAYS:
            width, height = height, width
    return ImageHeader(width=width, height=height)


def open_image(data: bytes) -> Image.Image:
    """The picture with its header read and no pixel decoded; see `read_header` for the errors."""
    if not data:
        raise UnusableImageError("REQUIRED", "must hold a PNG, JPEG or WebP file")
    signed = (name for name, (at, sign) in _SIGNATURES.items() if data.startswith(sign, at))
    expected = next(signed, None)
    if expected is None:
        raise UnusableImageError("NOT_AN_IMAGE", "must be a PNG, JPEG or WebP file")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (UnidentifiedImageError, *DAMAGE) as error:
        raise UnusableImageError(
            "BROKEN", f"the {expected} file is truncated or damaged: its header cannot be read"
        ) from error
    if image.width < 1 or image.height < 1:
        raise UnusableImageError("BROKEN", f"the picture has {image.width} × {image.height} pixels")
    # A phone's JPEG often carries further pictures (MPO): its first is the photograph.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UnusableImageError("ANIMATED", "must have one frame; the file is an animation")
    return image


def exif_orientation(image: Image.Image, data: bytes) -> int:
    """EXIF's number for how the picture in `data` lies, 1 (upright) to 8; no pixel is decoded."""
    try:
        if image.format == "PNG" and "exif" not in image.info:
            exif = _png_exif(data)
            if exif is not None:
                image.info["exif"] = exif
        # Not the PNG plugin's own, which decodes the picture to see whether EXIF comes behind it.
        return int(Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1))
    except DAMAGE:
        return 1  # Metadata that cannot be read says nothing.


def _png_exif(data: bytes) -> bytes | None:
    """The EXIF chunk of a PNG file, as Pillow has it of other formats; it may be the last one."""
    start = _PNG_SIGNATURE_BYTES
    for _ in range(_MOST_CHUNKS):
        if start + _CHUNK_FRAME_BYTES > len(data):
            return None
        size, name = struct.unpack_from(">I4s", data, start)
        if name == b"eXIf":
            return b"Exif\0\0" + data[start + 8 : start + 8 + size]
        start += _CHUNK_FRAME_BYTES + size
    return None
