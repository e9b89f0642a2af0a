"""The tokenizer: markers, padding, and words that it never saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from models.recipe.captions import load_concepts
from models.recipe.tokenizer import TOKEN_WINDOW, load_tokenizer, tokenize, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(load_concepts()[:20], folder)
    return load_tokenizer(folder)


def test_a_caption_stands_between_markers_and_is_padded_with_the_end(
    tokenizer: CLIPTokenizer,
) -> None:
    ids = tokenize(tokenizer, ["a red apple", ""])
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ids.shape == (2, TOKEN_WINDOW)
    assert start != end == tokenizer.pad_token_id
    assert ids[0, 0] == start
    assert (ids[0] == start).sum() == 1
    first_end = int((ids[0] == end).nonzero()[0])
    assert first_end > 2
    assert (ids[0, first_end:] == end).all()
    assert ids[1].tolist() == [start] + [end] * (TOKEN_WINDOW - 1)


def test_a_caption_comes_back_in_lower_case(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("A Red Apple on a light blue background").input_ids
    assert (
        tokenizer.decode(ids, skip_special_tokens=True) == "a red apple on a light blue background"
    )


@pytest.mark.parametrize("word", ["zebra", "ünïcödé", "quux9!", "猫", "🍎"])
def test_an_unknown_word_is_spelt_in_bytes(tokenizer: CLIPTokenizer, word: str) -> None:
    ids = tokenizer(word).input_ids
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert str(tokenizer.decode(ids, skip_special_tokens=True)).replace(" ", "") == word


def test_a_trained_word_is_short_and_a_long_prompt_is_cut(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer("apple").input_ids) == 3
    ids = tokenize(tokenizer, ["apple " * 100])
    assert ids.shape == (1, TOKEN_WINDOW)
    assert ids[0, -1] == tokenizer.eos_token_id


def test_the_same_seed_learns_the_same_tokenizer(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        train_tokenizer(load_concepts()[:3], folder)
    first, second = ((folder / "tokenizer.json").read_bytes() for folder in folders)
    assert first == second
