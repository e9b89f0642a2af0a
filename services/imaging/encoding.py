"""Pixels to files: PNG, JPEG and WebP, on a small thread pool of their own.

Called by services that have pixels to deliver. Pillow releases the interpreter lock while it
compresses, so that neither an event loop nor a device thread waits for it. Text goes into PNG files
only; the caller decides what may be written there.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ImageFormatName = Literal["png", "jpeg", "webp"]

MIME_TYPES: Mapping[ImageFormatName, str] = MappingProxyType(
    {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
)

JPEG_QUALITY = 95
WEBP_QUALITY = 90
# Level 6, the default, takes half as long again and saves nothing.
_PNG_LEVEL = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedImage:
    """A file in memory."""

    data: bytes
    mime_type: str
    width: int
    height: int


def encode_image(
    pixels: npt.NDArray[np.uint8],
    format_name: ImageFormatName,
    *,
    text: Mapping[str, str] | None = None,
) -> EncodedImage:
    """Encode pixels (H, W, 3) into a file; `text` becomes text chunks of a PNG.

    PNG is lossless, JPEG has quality 95 without chroma subsampling, WebP quality 90. Blocks; see
    `ImageEncoder` for use on an event loop.
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    match format_name:
        case "png":
            image.save(buffer, "PNG", compress_level=_PNG_LEVEL, pnginfo=_png_info(text or {}))
        case "jpeg":
            image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        case "webp":
            image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return EncodedImage(
        data=buffer.getvalue(),
        mime_type=MIME_TYPES[format_name],
        width=image.width,
        height=image.height,
    )


class ImageEncoder:
    """Encodes on a thread pool; closed with `close` or as a context manager."""

    def __init__(self, thread_count: int = 2) -> None:
        self._pool = ThreadPoolExecutor(thread_count, thread_name_prefix="image-encoder")

    async def encode(
        self,
        pixels: npt.NDArray[np.uint8],
        format_name: ImageFormatName,
        *,
        text: Mapping[str, str] | None = None,
    ) -> EncodedImage:
        """Encode as `encode_image` does, without blocking the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, lambda: encode_image(pixels, format_name, text=text)
        )

    def close(self) -> None:
        """Let the threads end after what they do now; nothing more can be encoded."""
        self._pool.shutdown(cancel_futures=True)


def _png_info(text: Mapping[str, str]) -> PngInfo:
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    return info
