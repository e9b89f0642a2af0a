"""Scores of pictures: does one show the subject, and is a class still what it was.

Called by the benchmark. Both scores are cosines of classical features, which anyone can build on
the spot: histograms of gradients over cells of 16 pixels, and a histogram of colours in CIELAB.
Features are centred on what the base model draws on the same background, so that a picture of
anything else scores about 0, not the 0.5 and more that any two pictures share.

What it is worth: it sees outline, stripes and colours at their places, so that a blurred or half
learnt subject scores in between. It would be fooled by a thing of the subject's outline and
colours with other details, and it punishes a subject that stands outside the poses it compares.
Hence the pictures are looked at, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2lab
from skimage.feature import hog

from benchmarks.personalisation.subject import Pixels, Pose, draw_subject

Features = npt.NDArray[np.float64]

_BINS = (6, 8, 8)
_LAB_RANGE = ((0.0, 100.0), (-90.0, 90.0), (-90.0, 90.0))
_POSES = tuple(
    Pose(scale=scale, turn_degrees=turn) for scale in (0.8, 0.86, 0.92) for turn in (-5.0, 0.0, 5.0)
)


class Scorer:
    """Knows what the base model draws on every background, and the subject in nine poses."""

    def __init__(self, drawn_by_base: Mapping[str, Sequence[Pixels]]) -> None:
        self._centres = {
            background: np.mean([features(picture) for picture in pictures], axis=0)
            for background, pictures in drawn_by_base.items()
        }
        self._references = {
            background: [
                _centred(
                    draw_subject(
                        Pose(
                            background=background, scale=pose.scale, turn_degrees=pose.turn_degrees
                        )
                    ),
                    centre,
                )
                for pose in _POSES
            ]
            for background, centre in self._centres.items()
        }

    def subject(self, picture: Pixels, background: str) -> float:
        """How much of the subject is in `picture`, 0 to 1: the best of all poses."""
        found = _centred(picture, self._centres[background])
        return max(0.0, *(float(found @ each) for each in self._references[background]))

    def likeness(self, picture: Pixels, other: Pixels, background: str) -> float:
        """How alike two pictures are, 0 to 1."""
        centre = self._centres[background]
        return max(0.0, float(_centred(picture, centre) @ _centred(other, centre)))


def features(picture: Pixels) -> Features:
    """Outlines and colours of a picture (128, 128, 3), each of length 1."""
    outline = hog(
        picture,
        orientations=9,
        pixels_per_cell=(16, 16),
        cells_per_block=(2, 2),
        channel_axis=2,
    )
    colours = rgb2lab(picture).reshape(-1, 3)
    histogram, _ = np.histogramdd(colours, bins=_BINS, range=_LAB_RANGE)
    # The square root weighs a small patch of a colour against a large one (Hellinger).
    return np.concatenate([_unit(outline), _unit(np.sqrt(histogram.ravel()))])


def _centred(picture: Pixels, centre: Features) -> Features:
    return _unit(features(picture) - centre)


def _unit(values: npt.NDArray[np.float64]) -> Features:
    length = float(np.linalg.norm(values))
    return values / length if length else values
