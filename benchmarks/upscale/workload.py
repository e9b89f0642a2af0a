"""The pictures of the benchmark, and a large one: photographs that scikit-image brings along."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8Array: TypeAlias = npt.NDArray[np.uint8]

SIZES = ((96, 96), (160, 128), (256, 256), (384, 256), (320, 480), (128, 96))
"""Width and height; every fourth picture or so is large, as in a day's requests."""
_PHOTOS = ("astronaut", "coffee", "chelsea")


def pictures(count: int) -> list[UInt8Array]:
    """`count` pictures (H, W, 3) of mixed sizes, the same in every run."""
    return [_photo(_PHOTOS[i % len(_PHOTOS)], *SIZES[i % len(SIZES)]) for i in range(count)]


def large_photo(width: int, height: int) -> UInt8Array:
    """A photograph enlarged to the size that cameras have."""
    return _photo("coffee", width, height)


def megapixels(sources: list[UInt8Array], scale: int) -> float:
    """Millions of output pixels."""
    pixel_count: int = sum(each.shape[0] * each.shape[1] for each in sources)
    return pixel_count * scale**2 / 1e6


def _photo(name: str, width: int, height: int) -> UInt8Array:
    from skimage import data

    photo = Image.fromarray(getattr(data, name)())
    return np.array(photo.resize((width, height), Image.Resampling.LANCZOS))
