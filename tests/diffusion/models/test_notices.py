from __future__ import annotations

import pytest

from services.diffusion.model import LoadedModel, Vocabulary
from services.diffusion.vocabulary import UnknownWord, WordList, describe

WORDS = WordList(
    Vocabulary(
        concepts=("red apple", "dog face", "cherries", "wolf", "t-shirt", "first aid kit"),
        styles=("3d", "flat"),
        backgrounds=("light blue",),
    ),
    other_words=("puppy", "cute", "apple"),
)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "A red APPLE, 3D style",
        "apples and the dog faces",
        "wolves with a T-shirt on a light-blue background",
        "cute puppies",
        "an apple's picture",
    ],
)
def test_known_words_plurals_and_possessives_draw_no_remark(prompt: str) -> None:
    assert WORDS.unknown_words(prompt) == []


def test_unknown_words_are_listed_once_in_order() -> None:
    unknown = WORDS.unknown_words("zebra aple zebra")

    assert [word.word for word in unknown] == ["zebra", "aple"]
    assert unknown[1].suggestions == ("red apple",)


def test_a_word_inside_a_longer_name_is_not_known_by_itself() -> None:
    assert WORDS.unknown_words("a first aid kit and first aid kits") == []
    assert [word.word for word in WORDS.unknown_words("a kit, first")] == ["kit", "first"]
    assert WORDS.unknown_words("a kit")[0].suggestions == ("first aid kit",)


def test_the_sentence_names_words_and_suggestions() -> None:
    apple = UnknownWord(word="aple", suggestions=("red apple",))
    zebra = UnknownWord(word="zebra", suggestions=())

    assert describe([apple]) == (
        "'aple' was not among the words this model learned; "
        "the nearest it knows by spelling: red apple."
    )
    assert describe([zebra, apple]).startswith("'zebra' and 'aple' were not among")
    assert "see the model's vocabulary" in describe([zebra])


def test_a_model_with_a_closed_vocabulary_remarks_on_unknown_words(
    emoji_model: LoadedModel,
) -> None:
    notices = emoji_model.prompt_notices("a rockett", field="negative_prompt")

    assert [(notice.code, notice.field) for notice in notices] == [
        ("UNKNOWN_WORDS", "negative_prompt")
    ]
    assert "rocket" in notices[0].message


def test_a_model_with_an_open_vocabulary_does_not(plain_model: LoadedModel) -> None:
    assert plain_model.prompt_notices("a zebra") == []


def test_words_beyond_the_window_are_named(plain_model: LoadedModel) -> None:
    (notice,) = plain_model.prompt_notices("a red apple under a table")

    assert notice.code == "PROMPT_TRUNCATED"
    assert notice.field == "prompt"
    assert "'a table'" in notice.message
