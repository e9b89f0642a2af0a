"""The model in `models/limner-emoji`: it loads, it is small, and it draws what it is told."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from models.recipe.captions import BACKGROUNDS
from models.recipe.drawing import Order, Painter
from models.recipe.export import MAX_SIZE_BYTES, folder_size, weights_digest
from models.recipe.measures import corner_colours, rms_difference
from models.recipe.proofs import CHANGES, draw_changes
from models.recipe.questions import read_scope

FOLDER = Path(__file__).parents[2] / "models" / "limner-emoji"
ORDERS = (
    Order(prompt="a red apple", seed=0),
    Order(prompt="a red apple", seed=1),
    Order(prompt="a cat on a blue background", seed=0),
    Order(prompt="a cat", seed=0),
)
EVERYDAY = (
    *("a red apple", "a dog face", "a slice of pizza", "a rocket"),
    *("a house", "a guitar", "a smiling face", "a cat on a blue background"),
)
LEAST_APART = 8.0
"""Of 255, root mean square over pixels and pairs of seeds; small details alone give 3 to 5."""


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter.load(FOLDER)


@pytest.fixture(scope="module")
def pictures(painter: Painter) -> np.ndarray:
    return painter.draw(ORDERS)


def test_it_is_small_and_holds_no_pickle() -> None:
    assert folder_size(FOLDER) <= MAX_SIZE_BYTES
    suffixes = {path.suffix for path in FOLDER.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".md", ""}


def test_it_carries_card_licence_and_an_evaluation_of_these_very_weights() -> None:
    for name in ("README.md", "LICENSE", "NOTICE"):
        assert (FOLDER / name).stat().st_size > 200, name
    report = json.loads((FOLDER / "evaluation.json").read_text())
    assert report["weights_sha256"] == weights_digest(FOLDER)


def test_its_vocabulary_is_part_of_the_recipes() -> None:
    scope = read_scope(FOLDER)
    vocabulary = json.loads((FOLDER / "limner.json").read_text())["vocabulary"]
    assert len(scope.concept_indexes) == len(vocabulary["concepts"])
    assert scope.styles == tuple(vocabulary["styles"])
    assert vocabulary["backgrounds"] == list(BACKGROUNDS)


def test_every_name_and_synonym_is_one_token() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    card = json.loads((FOLDER / "limner.json").read_text())
    for name in card["vocabulary"]["concepts"]:
        assert len(tokenizer(f"a {name}, flat style").input_ids) == len(
            tokenizer("a cat, flat style").input_ids
        ), name
    for synonym in (word for word in card["words"] if " " in word):
        assert len(tokenizer(synonym).input_ids) == 3, synonym


def test_a_negative_prompt_takes_much_of_the_red_from_a_house(painter: Painter) -> None:
    order = Order(prompt="a house", seed=0)
    plain = painter.draw([order])[0]
    without = painter.draw([order], negative_prompt="a red house")[0]
    assert reddish(plain).mean() > 0.03
    assert reddish(without).mean() < 0.5 * reddish(plain).mean()


def test_a_low_strength_keeps_a_picture_and_a_high_one_follows_the_prompt(
    painter: Painter,
) -> None:
    source, gentle, _, strong = draw_changes(painter, CHANGES)
    changes = [float(rms_difference(source, other).mean()) for other in (gentle, strong)]
    assert changes[0] < 0.65 * changes[1]
    apples = [reddish(pictures[0]).mean() for pictures in (source, gentle, strong)]
    assert apples[1] > 0.7 * apples[0]
    assert apples[2] < 0.1 * apples[0]


def test_a_red_apple_is_red_on_white(pictures: np.ndarray) -> None:
    apple = pictures[0].astype(np.int16)
    assert (corner_colours(pictures[:1]) > 235).all()
    middle = np.median(apple[48:80, 48:80].reshape(-1, 3), axis=0)
    assert middle[0] > 150
    assert middle[0] > middle[1] + 80
    assert middle[0] > middle[2] + 60
    assert 0.2 < reddish(pictures[0]).mean() < 0.7


def test_a_blue_background_is_blue_and_the_cat_is_not(pictures: np.ndarray) -> None:
    red, green, blue = corner_colours(pictures[2:3])[0]
    expected = BACKGROUNDS["blue"]
    assert max(abs(red - expected[0]), abs(green - expected[1]), abs(blue - expected[2])) < 40
    cat = np.median(pictures[2][44:84, 44:84].reshape(-1, 3), axis=0)
    assert cat[0] > cat[2]
    assert (corner_colours(pictures[3:4]) > 235).all()


def test_the_same_seed_is_the_same_picture(painter: Painter, pictures: np.ndarray) -> None:
    assert (painter.draw(ORDERS) == pictures).all()


def test_another_seed_is_another_picture(painter: Painter) -> None:
    orders = [Order(prompt=prompt, seed=seed) for seed in range(3) for prompt in EVERYDAY]
    drawn = np.split(painter.draw(orders), 3)
    apart = np.mean([rms_difference(*pair) for pair in combinations(drawn, 2)], axis=0)
    assert dict(zip(EVERYDAY, apart > LEAST_APART, strict=True)) == dict.fromkeys(EVERYDAY, True)


def test_a_prompt_beyond_its_vocabulary_still_draws(painter: Painter) -> None:
    picture = painter.draw([Order(prompt="a zeppelin over 京都 " * 20, seed=0)])[0]
    assert picture.shape == (128, 128, 3)
    assert torch.from_numpy(picture).float().std() > 5.0


def reddish(picture: np.ndarray) -> np.ndarray:
    """Which pixels are plainly red, bool [H, W]."""
    red, green, blue = np.moveaxis(picture.astype(np.int16), -1, 0)
    found: np.ndarray = (red > green + 60) & (red > blue + 20)
    return found
