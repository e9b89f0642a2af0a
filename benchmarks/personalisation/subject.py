"""The subject to teach: a toy robot that is drawn here and nowhere else.

Called by the benchmark to write its four photographs and to draw references for the judge. The
vocabulary of the embedded model has a robot, another one; nothing of this one was in its training
data. Everything is drawn at four times the size and scaled down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from models.recipe.captions import BACKGROUNDS

Pixels = npt.NDArray[np.uint8]
Point = tuple[float, float]

TOKEN = "sks"
CLASS_WORD = "robot"
INSTANCE_PROMPT = f"a photo of {TOKEN} toy {CLASS_WORD}"
CLASS_PROMPT = f"a photo of a {CLASS_WORD}"

SIDE = 128
_OVERSAMPLING = 4
_TEAL, _DARK, _VIOLET = "#1fb5a6", "#0d6e72", "#7a3fc4"
_YELLOW, _ORANGE, _WHITE, _BLACK = "#ffd43b", "#f76707", "#ffffff", "#20202a"
_PINK = "#f06595"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """How the toy stands in its picture; `shift` in shares of the side."""

    background: str = "white"
    scale: float = 0.9
    shift: Point = (0.0, 0.0)
    turn_degrees: float = 0.0


PHOTOGRAPHS = (
    Pose(background="white", scale=0.92),
    Pose(background="yellow", scale=0.84, shift=(0.03, 0.02), turn_degrees=5.0),
    Pose(background="blue", scale=0.88, shift=(-0.03, 0.0), turn_degrees=-5.0),
    Pose(background="pink", scale=0.8, shift=(0.0, -0.03), turn_degrees=2.0),
)
"""The four pictures that are taught; green, grey and purple are left for tests."""


def write_photographs(folder: Path, poses: Sequence[Pose] = PHOTOGRAPHS) -> Path:
    """Write PNG pictures with a caption beside each that names its background."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, pose in enumerate(poses):
        Image.fromarray(draw_subject(pose)).save(folder / f"{index}.png")
        caption = f"{INSTANCE_PROMPT} on a {pose.background} background"
        (folder / f"{index}.txt").write_text(f"{caption}\n", encoding="utf-8")
    return folder


def draw_subject(pose: Pose) -> Pixels:
    """The toy in a pose, (128, 128, 3)."""
    side = SIDE * _OVERSAMPLING
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[pose.background])
    toy = Image.new("RGBA", (side, side))
    _Brush(ImageDraw.Draw(toy), side, pose).toy()
    canvas.paste(toy, mask=toy)
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


class _Brush:
    """Draws in coordinates from -1 to 1, x to the right and y down, turned, scaled and shifted."""

    def __init__(self, draw: ImageDraw.ImageDraw, side: int, pose: Pose) -> None:
        self._draw, self._side, self._pose = draw, side, pose
        angle = math.radians(pose.turn_degrees)
        self._cosine, self._sine = math.cos(angle), math.sin(angle)

    def toy(self) -> None:
        """One eye under a violet dome, a bell of a body with a star on it, striped legs."""
        self._box((-0.02, -0.95), (0.02, -0.7), _BLACK)
        self._disc((0.0, -0.9), 0.1, _ORANGE)
        for x in (-0.26, 0.26):
            for stripe in range(4):
                top = 0.52 + 0.09 * stripe
                self._box((x - 0.1, top), (x + 0.1, top + 0.09), (_PINK, _WHITE)[stripe % 2])
            self._box((x - 0.17, 0.82), (x + 0.17, 0.96), _ORANGE)
        for mirror in (-1.0, 1.0):
            arm = [(0.4, 0.0), (0.78, -0.34), (0.9, -0.22), (0.5, 0.2)]
            self._shape([(mirror * x, y) for x, y in arm], _DARK)
            self._disc((mirror * 0.85, -0.32), 0.14, _ORANGE)
        self._shape([(-0.38, -0.22), (0.38, -0.22), (0.58, 0.58), (-0.58, 0.58)], _TEAL)
        self._shape(_star((0.0, 0.22), 0.3), _YELLOW)
        self._shape([*_arc((0.0, -0.2), 0.52)], _VIOLET)
        self._disc((0.0, -0.38), 0.23, _WHITE)
        self._disc((0.0, -0.38), 0.12, _BLACK)

    def _shape(self, points: Sequence[Point], colour: str) -> None:
        self._draw.polygon([self._place(point) for point in points], fill=colour)

    def _box(self, low: Point, high: Point, colour: str) -> None:
        self._shape([low, (high[0], low[1]), high, (low[0], high[1])], colour)

    def _disc(self, centre: Point, radius: float, colour: str) -> None:
        x, y = self._place(centre)
        r = radius * self._pose.scale * self._side / 2
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def _place(self, point: Point) -> Point:
        x, y = point
        turned = (x * self._cosine - y * self._sine, x * self._sine + y * self._cosine)
        half = self._side / 2
        across, down = (
            half + self._side * shift + half * self._pose.scale * value
            for shift, value in zip(self._pose.shift, turned, strict=True)
        )
        return across, down


def _star(centre: Point, radius: float) -> list[Point]:
    angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
    radii = [radius if index % 2 == 0 else 0.42 * radius for index in range(10)]
    return [
        (centre[0] + r * math.cos(a), centre[1] + r * math.sin(a))
        for r, a in zip(radii, angles, strict=True)
    ]


def _arc(centre: Point, radius: float) -> list[Point]:
    """The upper half of a disc."""
    angles = [math.pi * (1.0 + index / 48) for index in range(49)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]
