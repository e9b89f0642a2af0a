"""Files that strangers send, to pixels: PNG, JPEG and WebP, one frame, within a limit.

Called by services that take pictures, on a thread of their own: everything here blocks. What comes
out is upright (EXIF orientation applied) and has 8 bits a channel. Metadata other than the colour
profile is dropped: it tells where people have been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from services.imaging.colour import settle_colours
from services.imaging.header import DAMAGE, UnusableImageError, exif_orientation, open_image

DecodingRemark = Literal["REDUCED_TO_8_BITS", "CONVERTED_TO_SRGB"]

UInt8Array = npt.NDArray[np.uint8]

# By EXIF's number; all are views, so that turning a picture takes no memory.
_UPRIGHT: Mapping[int, Callable[[UInt8Array], UInt8Array]] = MappingProxyType(
    {
        2: lambda pixels: pixels[:, ::-1],
        3: lambda pixels: pixels[::-1, ::-1],
        4: lambda pixels: pixels[::-1],
        5: lambda pixels: pixels.swapaxes(0, 1),
        6: lambda pixels: pixels[::-1].swapaxes(0, 1),
        7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
        8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
    }
)
# Offset of the bit depth in a PNG's header chunk, which comes first.
_PNG_DEPTH_OFFSET = 24


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DecodedImage:
    """An upright picture."""

    pixels: UInt8Array
    """(H, W, C): gray, gray and alpha, RGB, or RGB and alpha; alpha is not premultiplied.
    Read-only, and not always contiguous."""
    icc_profile: bytes | None
    """Profile that the colours are in; None: none was given, so sRGB by convention."""
    remarks: tuple[DecodingRemark, ...]

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.pixels.shape[2] in (2, 4)


def decode_image(data: bytes, *, max_pixel_count: int) -> DecodedImage:
    """Decode a file completely.

    Raises `UnusableImageError` as `read_header` does, also BROKEN for pixels that cannot be
    decoded, and TOO_LARGE for more than `max_pixel_count` pixels, of which none is decoded then.
    """
    with open_image(data) as image:
        if image.width * image.height > max_pixel_count:
            raise UnusableImageError("TOO_LARGE", _too_large(image, max_pixel_count))
        has_16_bits = image.format == "PNG" and data[_PNG_DEPTH_OFFSET] == 16
        orientation = exif_orientation(image, data)
        try:
            image.load()
            settled = settle_colours(image, has_16_bits=has_16_bits)
        except DAMAGE as error:
            raise UnusableImageError(
                "BROKEN", f"the file is truncated or damaged: {_first_line(error)}"
            ) from error
    pixels: UInt8Array = np.asarray(settled.image)
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    if orientation in _UPRIGHT:
        pixels = _UPRIGHT[orientation](pixels)
    remarks: list[DecodingRemark] = []
    if has_16_bits:
        remarks.append("REDUCED_TO_8_BITS")
    if settled.converted_to_srgb:
        remarks.append("CONVERTED_TO_SRGB")
    return DecodedImage(
        pixels=pixels,
        icc_profile=settled.icc_profile,
        remarks=tuple(remarks),
    )


def _too_large(image: Image.Image, max_pixel_count: int) -> str:
    return (
        f"must have at most {max_pixel_count} pixels; "
        f"got {image.width} × {image.height} = {image.width * image.height}"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
