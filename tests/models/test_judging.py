"""The judge, what it is trained on, and the measurements beside it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.recipe.evaluate import README_PROMPTS
from models.recipe.judge import Examples, Judge, disturb, psnr_db, rate
from models.recipe.sheets import contact_sheet, save_png, save_webp
from models.recipe.spoilers import SPOILERS, Spoiler, blur
from tests.models.tiny import write_views


@pytest.fixture
def view() -> Tensor:
    """A premultiplied disc with stripes."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    opacity = ((x - 64).square() + (y - 64).square() < 50**2).float() * 255.0
    stripes = torch.stack([(x // 6 % 2), (y // 6 % 2), (x // 12 % 2)])
    return torch.cat([stripes * opacity, opacity[None]])


def test_blur_keeps_the_mean_and_flat_colour(view: Tensor) -> None:
    flat = torch.full((3, 32, 32), 7.0)
    assert torch.allclose(blur(flat, 3.0), flat, atol=1e-4)
    assert float(blur(view, 2.0).mean()) == pytest.approx(float(view.mean()), rel=1e-3)
    assert torch.equal(blur(view, 0.0), view)


@pytest.mark.parametrize("spoiler", dict.fromkeys(SPOILERS))
def test_a_spoiler_ruins_detail_and_stays_a_view(spoiler: Spoiler, view: Tensor) -> None:
    spoiled = spoiler(view, Random(0))
    assert spoiled.shape == view.shape
    assert float(spoiled.min()) >= 0.0
    assert float(spoiled.max()) <= 255.0 + 1e-3
    assert float((spoiled - view).abs().mean()) > 5.0


def test_a_disturbance_changes_little() -> None:
    picture = 0.5 * torch.ones(3, 128, 128)
    disturbed = disturb(picture, Random(0))
    assert not torch.equal(disturbed, picture)
    assert psnr_db(disturbed, picture) > 20.0


def test_examples_are_named_spoiled_or_left_out(tmp_path: Path) -> None:
    dataset, random = write_views(tmp_path), Random(0)
    examples = Examples(dataset)
    labels = [examples.one(random)[1] for _ in range(60)]
    assert set(labels) <= {0, 1, 2, 3, len(dataset.drawings), -100}
    assert {0, 1, 2, 3, len(dataset.drawings)} <= set(labels)


def test_the_same_drawing_of_two_things_has_one_label(tmp_path: Path) -> None:
    dataset = write_views(tmp_path, ((3, "3d"), (3, "line"), (5, "3d"), (5, "line"), (8, "3d")))
    assert dataset.labels == (3, 3, 5, 3, 8)


def test_a_judge_has_a_class_more_than_there_are_concepts() -> None:
    judge = Judge([0, 0, 0, 1, 1, 2, 4], 5)
    logits = judge(torch.zeros(2, 3, 128, 128))
    assert logits.shape == (2, 6)
    shares = judge.drawing_logits(torch.zeros(2, 3, 128, 128)).softmax(1)
    expected = torch.stack([shares[:, :3].sum(1), shares[:, 3:5].sum(1), shares[:, 5]], dim=1)
    assert torch.allclose(logits[:, :3].exp(), expected)
    assert torch.allclose(logits[:, -1].exp(), shares[:, -1])


class ScriptedJudge(Judge):
    """Answers with logits that were written down before."""

    def __init__(self, logits_BK: Tensor) -> None:
        super().__init__(range(logits_BK.shape[1] - 1), logits_BK.shape[1] - 1)
        self.logits_BK = logits_BK

    def forward(self, pictures_B3HW: Tensor) -> Tensor:
        return self.logits_BK[: len(pictures_B3HW)]


def test_a_rating_counts_first_places_top_five_and_none() -> None:
    ranks = torch.tensor(
        [
            [9, 8, 7, 6, 5, 4, 3, 0],
            [9, 8, 7, 6, 5, 4, 3, 0],
            [9, 8, 7, 6, 5, 4, 3, 0],
            [9, 8, 7, 6, 5, 4, 3, 10],
        ]
    ).float()
    rating = rate(ScriptedJudge(ranks), torch.zeros(4, 3, 8, 8), torch.tensor([0, 3, 6, 0]))
    assert (rating.top1, rating.top5, rating.none) == (0.25, 0.75, 0.25)
    assert rating.top1_of_concepts == 0.5


def test_a_sheet_has_a_cell_for_each_picture(tmp_path: Path) -> None:
    pictures = [np.full((128, 128, 3), shade, np.uint8) for shade in (0, 90, 180)]
    sheet = contact_sheet(pictures, 2, captions=["one", "two", "a much longer caption " * 3])
    assert sheet.size == (256, 2 * (128 + 26))
    assert sheet.getpixel((200, 60)) == (90, 90, 90)
    assert sheet.getpixel((200, 200)) == (255, 255, 255)
    assert contact_sheet(pictures, 3, side=64).size == (192, 64)
    save_png(sheet, tmp_path / "sheet.png", 10_000)
    with Image.open(tmp_path / "sheet.png") as saved:
        assert saved.size == sheet.size


def test_a_sheet_that_cannot_fit_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    sheet = contact_sheet([noise], 1)
    for save, name in ((save_png, "a.png"), (save_webp, "a.webp")):
        with pytest.raises(ValueError, match="more than 100"):
            save(sheet, tmp_path / name, 100)
    assert list(tmp_path.iterdir()) == []


def test_the_sheet_of_the_readme_fills_four_rows_of_eight() -> None:
    assert len(README_PROMPTS) == len(set(README_PROMPTS)) == 32
