"""Shapes that training pictures are cut to.

Called with the side of a run. A shape has about as many pixels as the square of that side, so that
a pass takes as long, and sides that the base model can take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Size = tuple[int, int]
"""Height and width in pixels."""

_MOST_OBLONG = 2.0


def bucket_sizes(
    side: int, multiple: int, aspect: Literal["square", "buckets"]
) -> tuple[Size, ...]:
    """The square, and with `buckets` every other shape up to 1 : 2, tall ones first."""
    if aspect == "square":
        return ((side, side),)
    widths = range(multiple, 2 * side + 1, multiple)
    sizes = {(side, side)}
    for width in widths:
        height = multiple * round(side * side / (width * multiple))
        if height and max(width / height, height / width) <= _MOST_OBLONG:
            sizes.add((height, width))
    return tuple(sorted(sizes, key=lambda size: size[1] / size[0]))


def nearest_bucket(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """The one of `sizes` that loses least of a picture: its aspect ratio is nearest."""
    wanted = math.log(width / height)
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0]) - wanted))
