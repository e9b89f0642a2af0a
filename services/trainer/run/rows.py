"""The batch of a micro-step: latents and text of the subject's rows and then of the class's.

Called by the learner with a counter. Which picture, crop, flip and caption a row has depends on the
run's seed and on the row's place in the series of all rows of all processes, so that the series is
the same however it is split between processes and restarts.

Shape legend: B rows, C latent channels, h and w latent sides, H and W picture sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from services.trainer.run import randomness
from services.trainer.run.buckets import Size, nearest_bucket
from services.trainer.run.configuration import PictureSection
from services.trainer.run.dataset import Picture, load_rgb

Kind = Literal["instance", "class"]
# Rows of the class, and of validation, have counters far from those of the subject.
_CLASS_OFFSET = 2**40
_VALIDATION_OFFSET = 2**50

Encode = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Mean and deviation (1, C, h, w) of the latents of a picture (1, 3, H, W) in [-1, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """What one row is made of."""

    kind: Kind
    counter: int
    """Its place among all rows of its kind; class rows start at 2**40."""
    index: int
    prompt: str
    flipped: bool
    corner: Size
    """Top and left of what is cut out of the fitted picture."""


class RowSource:
    """Draws rows of one kind; latents are encoded once where `cached`."""

    def __init__(
        self,
        kind: Kind,
        pictures: Sequence[Picture],
        prompt: str,
        *,
        buckets: Sequence[Size],
        section: PictureSection,
        cached: bool,
        seed: int,
        encode: Encode,
    ) -> None:
        self.kind = kind
        self._prompts = [picture.caption or prompt for picture in pictures]
        self._section, self._seed = section, seed
        self._encoder = encode
        # Fitted, uncropped: some kilobytes to megabytes a picture.
        loaded = [load_rgb(picture) for picture in pictures]
        self._sizes = [
            nearest_bucket(pixels.shape[0], pixels.shape[1], buckets) for pixels in loaded
        ]
        self._pictures = [
            _fit(pixels, size) for pixels, size in zip(loaded, self._sizes, strict=True)
        ]
        self._moments: dict[tuple[int, bool], tuple[Tensor, Tensor | None]] = {}
        self._cached = cached

    @property
    def prompts(self) -> set[str]:
        """Every prompt that a row can have."""
        return {*self._prompts, ""} if self._section.caption_dropout else set(self._prompts)

    def rows(self, first: int, count: int) -> list[Row]:
        """Rows `first` to `first + count - 1` of the endless series."""
        return [self._row(position) for position in range(first, first + count)]

    def validation_rows(self, most: int) -> list[Row]:
        """One row for each of the first `most` pictures, as it is, with its own prompt."""
        return [
            Row(
                kind=self.kind,
                counter=_VALIDATION_OFFSET + index,
                index=index,
                prompt=prompt,
                flipped=False,
                corner=self._center(index),
            )
            for index, prompt in enumerate(self._prompts[:most])
        ]

    def prepare(
        self, first: int, count: int, *, validated: int, before_each: Callable[[], None]
    ) -> None:
        """Encode now whatever rows `first` and on, `count` of them, and validation will want.

        `before_each` is called between pictures, and may raise.
        """
        wanted = {(index, False) for index in range(min(validated, len(self._pictures)))}
        for position in range(first, first + count):
            if len(wanted) == 2 * len(self._pictures):
                break  # every picture both ways
            wanted.add(self._shown(position))
        for index, flipped in sorted(wanted - self._moments.keys()):
            before_each()
            self._moments[index, flipped] = self._encode(index, flipped, self._center(index))

    def latents(self, row: Row) -> Tensor:
        """Latents (1, C, h, w) of a row, float32 on the run's device."""
        place = (row.index, row.flipped)
        moments = self._moments.get(place) if self._cached else None
        if moments is None:
            moments = self._encode(row.index, row.flipped, row.corner)
            if self._cached:
                self._moments[place] = moments
        mean, deviation = moments
        if deviation is None:
            return mean
        drawn = randomness.normal(tuple(mean.shape), self._seed, "latent", row.counter)
        return mean + deviation * drawn.to(mean.device)

    def time_ids(self, row: Row) -> tuple[int, ...]:
        """SDXL's sizes: height and width of the fitted picture, corner, height and width cut."""
        height, width = self._pictures[row.index].shape[:2]
        size, (top, left) = self._sizes[row.index], row.corner
        if row.flipped:
            left = width - size[1] - left
        return (height, width, top, left, *size)

    def _row(self, position: int) -> Row:
        counter = self._counter(position)
        index, flipped = self._shown(position)
        drop = randomness.uniform(self._seed, "caption", counter) < self._section.caption_dropout
        return Row(
            kind=self.kind,
            counter=counter,
            index=index,
            prompt="" if drop else self._prompts[index],
            flipped=flipped,
            corner=self._corner(index, counter),
        )

    def _shown(self, position: int) -> tuple[int, bool]:
        """Which picture row `position` has, and whether it is flipped."""
        order: randomness.Purpose = "class order" if self.kind == "class" else "instance order"
        index = randomness.index_of(position, len(self._pictures), self._seed, order)
        flip = randomness.uniform(self._seed, "flip", self._counter(position))
        return index, flip < self._section.flip_probability

    def _counter(self, position: int) -> int:
        return position + (_CLASS_OFFSET if self.kind == "class" else 0)

    def _corner(self, index: int, counter: int) -> Size:
        if self._section.crop == "center":
            return self._center(index)
        top, left = (
            int(randomness.uniform(self._seed, "crop", counter, axis) * (room + 1))
            for axis, room in enumerate(self._room(index))
        )
        return top, left

    def _center(self, index: int) -> Size:
        down, right = self._room(index)
        return down // 2, right // 2

    def _room(self, index: int) -> Size:
        shape, size = self._pictures[index].shape, self._sizes[index]
        return shape[0] - size[0], shape[1] - size[1]

    @torch.no_grad()
    def _encode(self, index: int, flipped: bool, corner: Size) -> tuple[Tensor, Tensor | None]:
        (top, left), (height, width) = corner, self._sizes[index]
        cut = self._pictures[index][top : top + height, left : left + width]
        pixels = cut[:, ::-1] if flipped else cut
        picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        return self._encoder(picture.float() / 127.5 - 1.0)


def _fit(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], size: Size
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Scale so that `size` (height and width) can just be cut out."""
    image, (height, width) = Image.fromarray(pixels), size
    scale = max(width / image.width, height / image.height)
    fitted = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    return np.asarray(image.resize(fitted, Image.Resampling.LANCZOS))
