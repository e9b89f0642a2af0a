"""Training examples for the denoiser: captions as tokens beside scaled latents.

Called by `denoiser` and by the curve. All captions are drawn and tokenised once, so that a step
costs two look-ups, on a CPU and on a GPU alike. Legend: N pictures, K captions a picture, B batch,
L tokens, C channels, h and w latent sides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from models.recipe.captions import PLAIN, Scene, draw_caption, draw_setting
from models.recipe.dataset import Dataset
from models.recipe.heldout import FIRST_EDITION_COUNT
from models.recipe.latents import EncodedPictures, kind_of
from models.recipe.surroundings import Surroundings
from models.recipe.tokenizer import tokenize

EMPTY_SHARE = 0.1
"""Captions left empty, for classifier-free guidance."""
WHITE_NAMED_SHARE = 0.08
STYLE_SHARES = {"3d": 0.44, "flat": 0.42, "line": 0.14}
KIND_SHARES = {"plain": 0.24, "background": 0.44, "colour": 0.14, "layout": 0.18}
"""Of a drawing's pictures."""
POSED_SHARE = 0.75
"""Of a kind's pictures, those not in the first pose: captions are silent about it, seeds choose."""
EVERYDAY_FACTOR = 2.0
"""How much more often the things of the first edition come: most people ask for them first."""
SURROUNDED_SHARE = 0.5
"""Of pictures that leave a part of the canvas empty: these have something else there."""
JUNK_SHARE = 0.1
"""Captions with words that mean nothing, so that unknown words do no harm."""
SETTING_SHARE = 0.05
"""Captions that name no thing."""
_CAPTIONS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentBatch:
    """Tokens of captions, int64, and scaled latents, float32, of what they describe.

    `own_B1hw`, bool, says which of the latents the caption speaks of.
    """

    tokens_BL: Tensor
    latents_BChw: Tensor
    own_B1hw: Tensor


class Draws:
    """Random examples of all drawings that were encoded."""

    def __init__(
        self,
        encoded: EncodedPictures,
        dataset: Dataset,
        tokenizer: CLIPTokenizer,
        scale: float,
        *,
        caption_count: int,
        centred: bool = False,
        emphasis: Mapping[int, float] | None = None,
        surrounded_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Draw `caption_count` captions a picture.

        `centred` takes only pictures in the first pose. `emphasis` are factors on how often
        drawings come, by their places. Of the pictures that leave a part of the canvas empty,
        `surrounded_share` get other pictures there.
        """
        rows = [row for row, pose in enumerate(encoded.poses) if not (centred and pose)]
        self._scale = scale
        self._weights_N = _weights(encoded, dataset, rows, emphasis or {})
        self._latents_NChw = encoded.latents[rows]
        self._tokens_NKL = _captions(encoded, dataset, rows, tokenizer, caption_count, Random(seed))
        self._empty_L = tokenize(tokenizer, [""])[0].short()
        self._surrounded_share = surrounded_share
        scenes = [encoded.scenes[row] for row in rows]
        self._surroundings = Surroundings(scenes, encoded.latents.shape[-1])

    def to(self, device: torch.device) -> Draws:
        """Keep everything on `device`, where batches will be; returns itself."""
        moved = ("_weights_N", "_latents_NChw", "_tokens_NKL", "_empty_L", "_surroundings")
        for name in moved:
            setattr(self, name, getattr(self, name).to(device))
        return self

    def batch(self, count: int, generator: torch.Generator) -> LatentBatch:
        """`count` captions with the latents of what they describe."""
        device = self._weights_N.device
        rows = torch.multinomial(self._weights_N, count, replacement=True, generator=generator)
        caption_count = self._tokens_NKL.shape[1]
        which = torch.randint(caption_count, (count,), generator=generator, device=device)
        empty = torch.rand(count, generator=generator, device=device) < EMPTY_SHARE
        tokens = torch.where(empty[:, None], self._empty_L, self._tokens_NKL[rows, which])
        latents, own = self._surroundings.surround(
            rows, self._latents_NChw, self._surrounded_share, generator
        )
        return LatentBatch(
            tokens_BL=tokens.long(), latents_BChw=latents.float() * self._scale, own_B1hw=own
        )


def _weights(
    encoded: EncodedPictures,
    dataset: Dataset,
    rows: Sequence[int],
    emphasis: Mapping[int, float],
) -> Tensor:
    """One weight a row: drawings as `STYLE_SHARES`, `emphasis` and use, then kinds, then poses."""
    use = [
        EVERYDAY_FACTOR if drawing.concept_index < FIRST_EDITION_COUNT else 1.0
        for drawing in dataset.drawings
    ]
    groups = [
        _Group(encoded.drawings[row], kind_of(encoded.scenes[row]), encoded.poses[row] > 0)
        for row in rows
    ]
    sizes = Counter(groups)
    kind_sums: dict[int, float] = defaultdict(float)
    pose_sums: dict[tuple[int, str], float] = defaultdict(float)
    for group in sizes:
        pose_sums[group.drawing, group.kind] += _pose_share(group)
    for drawing, kind in pose_sums:
        kind_sums[drawing] += KIND_SHARES[kind]
    weights = [
        STYLE_SHARES[dataset.drawings[group.drawing].style]
        * emphasis.get(group.drawing, 1.0)
        * use[group.drawing]
        * (KIND_SHARES[group.kind] / kind_sums[group.drawing])
        * (_pose_share(group) / pose_sums[group.drawing, group.kind])
        / sizes[group]
        for group in groups
    ]
    return torch.tensor(weights)


class _Group(NamedTuple):
    """Pictures that are drawn equally often."""

    drawing: int
    kind: str
    posed: bool


def _pose_share(group: _Group) -> float:
    return POSED_SHARE if group.posed else 1.0 - POSED_SHARE


def _captions(
    encoded: EncodedPictures,
    dataset: Dataset,
    rows: Sequence[int],
    tokenizer: CLIPTokenizer,
    caption_count: int,
    random: Random,
) -> Tensor:
    """Token ids, int16 [N, K, L]."""
    captions = []
    for row in rows:
        drawing = dataset.drawings[encoded.drawings[row]]
        concept = dataset.concepts[drawing.concept_index]
        for _ in range(caption_count):
            scene = encoded.scenes[row]
            if scene == PLAIN and random.random() < WHITE_NAMED_SHARE:
                scene = Scene(background="white")
            if random.random() < SETTING_SHARE:
                caption = draw_setting(drawing.style, scene, random)
            else:
                caption = draw_caption(concept, drawing.style, scene, random)
            if random.random() < JUNK_SHARE:
                caption = f"{caption} {_junk(random)}"
            captions.append(caption)
    parts = [
        tokenize(tokenizer, captions[start : start + _CAPTIONS_AT_ONCE]).short()
        for start in range(0, len(captions), _CAPTIONS_AT_ONCE)
    ]
    return torch.cat(parts).view(len(rows), caption_count, -1)


def _junk(random: Random) -> str:
    """One to four words of random letters."""
    words = ("".join(random.choices(ascii_lowercase, k=random.randint(3, 7))) for _ in range(4))
    return " ".join(list(words)[: random.randint(1, 4)])
