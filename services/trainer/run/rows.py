"""The batch of a micro-step: latents and text of the subject's rows and then of the class's.

Called by the learner with a counter. Which picture, crop, flip and caption a row has depends on the
run's seed and on the row's place in the series of all rows of all processes, so that the series is
the same however it is split between processes and restarts.

Shape legend: B rows, C latent channels, h and w latent sides, H and W picture sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from services.trainer.run import randomness
from services.trainer.run.components import encode_moments
from services.trainer.run.configuration import PictureSection
from services.trainer.run.dataset import Picture, load_rgb

Kind = Literal["instance", "class"]
# Rows of the class, and of validation, have counters far from those of the subject.
_CLASS_OFFSET = 2**40
_VALIDATION_OFFSET = 2**50


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """What one row is made of."""

    kind: Kind
    counter: int
    """Its place among all rows of its kind; class rows start at 2**40."""
    index: int
    prompt: str
    flipped: bool


class RowSource:
    """Draws rows of one kind; latents are encoded once where `cached`."""

    def __init__(
        self,
        kind: Kind,
        pictures: Sequence[Picture],
        prompt: str,
        *,
        side: int,
        section: PictureSection,
        cached: bool,
        seed: int,
        vae: nn.Module,
        device: torch.device,
    ) -> None:
        self.kind = kind
        self._prompts = [picture.caption or prompt for picture in pictures]
        self._side, self._section, self._seed = side, section, seed
        self._vae, self._device = vae, device
        # Fitted, uncropped: some kilobytes to megabytes a picture.
        self._pictures = [_fit(load_rgb(picture), side) for picture in pictures]
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
            )
            for index, prompt in enumerate(self._prompts[:most])
        ]

    def latents(self, rows: Sequence[Row]) -> Tensor:
        """Latents (B, C, h, w), float32 on the run's device."""
        return torch.cat([self._latent(row) for row in rows])

    def _row(self, position: int) -> Row:
        counter = position + (_CLASS_OFFSET if self.kind == "class" else 0)
        order: randomness.Purpose = "class order" if self.kind == "class" else "instance order"
        index = randomness.index_of(position, len(self._pictures), self._seed, order)
        drop = randomness.uniform(self._seed, "caption", counter) < self._section.caption_dropout
        flip = randomness.uniform(self._seed, "flip", counter) < self._section.flip_probability
        return Row(
            kind=self.kind,
            counter=counter,
            index=index,
            prompt="" if drop else self._prompts[index],
            flipped=flip,
        )

    def _latent(self, row: Row) -> Tensor:
        place = (row.index, row.flipped)
        moments = self._moments.get(place) if self._cached else None
        if moments is None:
            moments = self._encode(row)
            if self._cached:
                self._moments[place] = moments
        mean, deviation = moments
        if deviation is None:
            return mean
        drawn = randomness.normal(tuple(mean.shape), self._seed, "latent", row.counter)
        return mean + deviation * drawn.to(mean.device)

    @torch.no_grad()
    def _encode(self, row: Row) -> tuple[Tensor, Tensor | None]:
        pixels = self._crop(row)
        picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(self._device)
        return encode_moments(self._vae, picture.float() / 127.5 - 1.0)

    def _crop(self, row: Row) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        pixels, side = self._pictures[row.index], self._side
        free = (pixels.shape[0] - side, pixels.shape[1] - side)
        if self._section.crop == "center":
            top, left = free[0] // 2, free[1] // 2
        else:
            top, left = (
                int(randomness.uniform(self._seed, "crop", row.counter, axis) * (room + 1))
                for axis, room in enumerate(free)
            )
        square = pixels[top : top + side, left : left + side]
        return square[:, ::-1] if row.flipped else square


def _fit(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], side: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Scale so that the shorter side is `side`."""
    image = Image.fromarray(pixels)
    scale = side / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))
