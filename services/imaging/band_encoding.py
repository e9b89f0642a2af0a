"""A picture file from bands of rows, so that nobody has to hold all pixels where that is avoidable.

Called by services whose pictures come from top to bottom. A PNG is compressed as its rows come:
beside the file itself only a few rows are held. The JPEG and WebP encoders take whole pictures: one
8-bit copy is held until the end, 4 bytes a pixel, and WebP's takes up to 8 more. Everything here
blocks.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from services.imaging.encoding import (
    JPEG_QUALITY,
    MIME_TYPES,
    WEBP_QUALITY,
    EncodedImage,
    ImageFormatName,
)
from services.imaging.png_rows import PngRows

UInt8Array = npt.NDArray[np.uint8]

MAX_SIDES: Mapping[ImageFormatName, int] = MappingProxyType(
    {"png": 2**31 - 1, "jpeg": 65500, "webp": 16383}
)
"""Longest side in pixels that a format can say."""

# From 3 on the encoder collects what it codes: 22 bytes a pixel at worst, for 1 % smaller files.
_WEBP_METHOD = 2
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_WHITE = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureLayout:
    """What the encoder must know before the first row."""

    width: int
    height: int
    channel_count: int
    """1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha."""
    icc_profile: bytes | None = None


class BandEncoder(Protocol):
    """Takes the rows of one picture in order."""

    def write(self, rows_HWC: UInt8Array) -> None:
        """Take the next rows (h, W, C)."""
        ...

    def finish(self) -> EncodedImage:
        """Return the file. Raises ValueError while rows are missing."""
        ...


def open_band_encoder(layout: PictureLayout, format_name: ImageFormatName) -> BandEncoder:
    """Begin a file: lossless PNG, JPEG of quality 95 on white, or WebP of quality 90."""
    if format_name == "png":
        return _PngEncoder(layout)
    return _WholePictureEncoder(layout, format_name)


class _PngEncoder:
    def __init__(self, layout: PictureLayout) -> None:
        self._layout = layout
        self._rows = PngRows(
            width=layout.width,
            height=layout.height,
            channel_count=layout.channel_count,
            icc_profile=layout.icc_profile,
            text={"Software": "Limner"},
        )

    def write(self, rows_HWC: UInt8Array) -> None:
        self._rows.write(rows_HWC)

    def finish(self) -> EncodedImage:
        return _encoded(self._rows.finish(), self._layout, "png")


class _WholePictureEncoder:
    def __init__(self, layout: PictureLayout, format_name: ImageFormatName) -> None:
        self._layout = layout
        self._format_name = format_name
        self._flattens = format_name == "jpeg" and layout.channel_count in (2, 4)
        channel_count = layout.channel_count - 1 if self._flattens else layout.channel_count
        self._picture = Image.new(_MODES[channel_count], (layout.width, layout.height))
        self._row_count = 0

    def write(self, rows_HWC: UInt8Array) -> None:
        rows = _on_white(rows_HWC) if self._flattens else rows_HWC
        band = Image.fromarray(rows[:, :, 0] if rows.shape[2] == 1 else rows)
        self._picture.paste(band, (0, self._row_count))
        self._row_count += rows.shape[0]

    def finish(self) -> EncodedImage:
        if self._row_count != self._layout.height:
            raise ValueError(f"{self._layout.height - self._row_count} rows are missing")
        options: dict[str, Any] = {"quality": WEBP_QUALITY, "method": _WEBP_METHOD}
        if self._format_name == "jpeg":
            options = {"quality": JPEG_QUALITY, "subsampling": 0}
        buffer = io.BytesIO()
        icc = self._layout.icc_profile
        self._picture.save(buffer, self._format_name.upper(), icc_profile=icc, **options)
        return _encoded(buffer.getvalue(), self._layout, self._format_name)


def _on_white(rows_HWC: UInt8Array) -> UInt8Array:
    colour, alpha = rows_HWC[:, :, :-1].astype(np.uint32), rows_HWC[:, :, -1:].astype(np.uint32)
    return ((colour * alpha + _WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)


def _encoded(data: bytes, layout: PictureLayout, format_name: ImageFormatName) -> EncodedImage:
    return EncodedImage(
        data=data, mime_type=MIME_TYPES[format_name], width=layout.width, height=layout.height
    )
