"""From views to training examples: latents, their backgrounds, and captions that tell the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from models.recipe.autoencoder import build_autoencoder
from models.recipe.captions import BACKGROUNDS, COLOUR_SPELLINGS, STYLES, load_concepts
from models.recipe.dataset import Drawing, composite
from models.recipe.denoiser import ROUNDS, Draws
from models.recipe.latents import (
    COLOURED_COUNT,
    EncodedViews,
    encode_views,
    latent_scale,
    load_latents,
)
from models.recipe.workdir import WorkDir
from tests.models.tiny import DRAWINGS, VIEW_COUNT, WORKER, write_views


def test_each_latent_is_the_view_on_the_colour_that_its_slot_names(tmp_path: Path) -> None:
    work, dataset = WorkDir(root=tmp_path), write_views(tmp_path)
    torch.manual_seed(0)
    vae = build_autoencoder()
    encode_views(vae, dataset, work, WORKER)
    encoded = load_latents(dataset, work)
    assert encoded.latents.shape == (len(DRAWINGS), VIEW_COUNT, 1 + COLOURED_COUNT, 4, 16, 16)
    assert encoded.background(0, 0, 0) is None
    for slot in range(1 + COLOURED_COUNT):
        colour = BACKGROUNDS[encoded.background(2, 1, slot) or "white"]
        view = torch.from_numpy(np.array(dataset.views[2, 1]))[None]
        with torch.no_grad():
            expected = vae.encoder(composite(view, torch.tensor([colour])))[0]
        assert torch.allclose(encoded.latents[2, 1, slot].float(), expected, atol=2e-3)


def test_latents_of_other_drawings_are_refused(tmp_path: Path) -> None:
    work, dataset = WorkDir(root=tmp_path), write_views(tmp_path)
    np.save(work.latents, np.zeros((1, 1, 1, 4, 16, 16), np.float16))
    np.save(work.latent_backgrounds, np.zeros((1, 1, 0), np.int64))
    with pytest.raises(ValueError, match="other drawings"):
        load_latents(dataset, work)


def test_scaled_latents_have_unit_deviation() -> None:
    latents = 3.0 * torch.randn(2, 1, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    scaled = latents.half().float() * latent_scale(latents.half())
    assert float(scaled.std()) == pytest.approx(1.0, abs=1e-3)


@pytest.fixture
def marked() -> EncodedViews:
    """Latents whose first element is ten times the drawing plus the slot."""
    drawings = tuple(Drawing(concept_index=c, style=s) for c in range(4) for s in STYLES)
    shape = (len(drawings), 2, 1 + COLOURED_COUNT, 4, 1, 1)
    marks = 10 * torch.arange(len(drawings))[:, None, None] + torch.arange(1 + COLOURED_COUNT)
    latents = marks[..., None, None, None].expand(shape).half()
    backgrounds = np.arange(len(drawings) * 2 * COLOURED_COUNT).reshape(len(drawings), 2, -1)
    return EncodedViews(
        drawings=drawings, latents=latents, backgrounds=backgrounds % len(BACKGROUNDS)
    )


def test_captions_say_what_their_latents_show(marked: EncodedViews) -> None:
    concepts = load_concepts()
    batch = Draws(marked, concepts, ROUNDS[-1]).batch(600, Random(0))
    spoken = 0
    for caption, latent in zip(batch.captions, batch.latents_BChw, strict=True):
        mark = int(latent.flatten()[0])
        drawing, slot = marked.drawings[mark // 10], mark % 10
        if not caption:
            continue
        spoken += 1
        assert _names(caption, concepts[drawing.concept_index].names)
        assert drawing.style == "3d" or "flat" in caption
        if slot:
            seen = {marked.background(mark // 10, view, slot) for view in (0, 1)}
            assert _names(caption, [s for name in seen for s in _spellings(name)])
    assert 500 < spoken < 580
    assert batch.latents_BChw.dtype == torch.float32


def _spellings(colour: str | None) -> tuple[str, ...]:
    assert colour is not None
    return COLOUR_SPELLINGS.get(colour, (colour,))


def _names(caption: str, names: Sequence[str]) -> bool:
    return any(name.split(" ", 1)[-1] in caption or name in caption for name in names)


def test_every_drawing_that_is_shown_twice_is_one_that_there_is() -> None:
    labels = {concept.label for concept in load_concepts()}
    for training in ROUNDS:
        assert set(training.shown_twice) == set(STYLES)
        assert all(shown <= labels for shown in training.shown_twice.values())
