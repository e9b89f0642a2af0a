"""The tokenizer: markers, padding, and words that it never saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from models.recipe.captions import load_concepts
from models.recipe.tokenizer import (
    NO_CONCEPT,
    TOKEN_WINDOW,
    add_new_names,
    load_tokenizer,
    owners_of,
    tokenize,
    train_tokenizer,
)

CONCEPTS = load_concepts()[:20]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CONCEPTS, folder)
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
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    # Nothing says that a name ends a word, so the space behind it is lost.
    assert text == "a red appleon a light blue background"


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


def test_every_name_is_one_token_the_longest_that_fits(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.tokenize("A Red Apple") == ["a</w>", "red apple"]
    assert tokenizer.tokenize("two apples")[-1:] == ["apples"]
    assert tokenizer.tokenize("a blue apple, please")[:3] == ["a</w>", "blue</w>", "apple"]
    assert "apple" not in tokenizer.tokenize("a crabapple")


def test_a_name_knows_its_concept(tokenizer: CLIPTokenizer) -> None:
    owners = owners_of(tokenizer, CONCEPTS)
    assert len(owners) == len(tokenizer)
    vocabulary = tokenizer.get_vocab()
    for name, label in (("red apple", "red apple"), ("apples", "red apple"), ("pears", "pear")):
        assert CONCEPTS[owners[vocabulary[name]]].label == label
    assert owners[vocabulary["a</w>"]] == owners[tokenizer.eos_token_id] == NO_CONCEPT


def test_a_new_name_gets_a_token_and_changes_no_other(tmp_path: Path) -> None:
    train_tokenizer(CONCEPTS[:3], tmp_path)
    before = load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"no token for .*strawberry.*: run the stage `data`"):
        owners_of(before, CONCEPTS)
    add_new_names(CONCEPTS, tmp_path)
    after = load_tokenizer(tmp_path)
    assert before.get_vocab().items() < after.get_vocab().items()
    owners = owners_of(after, CONCEPTS)
    assert CONCEPTS[owners[after.get_vocab()["strawberry"]]].label == "strawberry"
    written = (tmp_path / "tokenizer.json").read_bytes()
    add_new_names(CONCEPTS, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == written


def test_the_same_seed_learns_the_same_tokenizer(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        train_tokenizer(load_concepts()[:3], folder)
    first, second = ((folder / "tokenizer.json").read_bytes() for folder in folders)
    assert first == second
