"""The caption grammar and the vocabulary's format."""

from __future__ import annotations

from random import Random

import pytest

from models.recipe.captions import (
    BACKGROUNDS,
    COLOUR_SPELLINGS,
    STYLES,
    Concept,
    article_for,
    draw_caption,
    known_words,
    load_concepts,
    parse_concepts,
    strip_article,
)

APPLE = Concept(label="red apple", phrase="a red apple", synonyms=("an apple",), may_mirror=True)


def test_a_line_holds_label_phrase_synonyms_and_flags() -> None:
    text = "# comment\n\nalarm clock | an alarm clock | a clock, the time | fixed\npear | a pear\n"
    clock, pear = parse_concepts(text)
    assert clock.names == ("an alarm clock", "a clock", "the time")
    assert not clock.may_mirror
    assert pear == Concept(label="pear", phrase="a pear", synonyms=(), may_mirror=True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pear", "line 1: expected"),
        ("pear |", "line 1: expected"),
        ("| a pear", "line 1: expected"),
        ("pear | a pear | x | fixed | more", "line 1: expected"),
        ("# fine\npear | a pear | | turned", "line 2: unknown flag 'turned'"),
        ("pear | a pear\nfruit | the fruit | a pear", "line 2: 'a pear' already names 'pear'"),
        ("pear | a pear\nfruit | the pear", "line 2: 'the pear' already names 'pear'"),
    ],
)
def test_a_malformed_vocabulary_names_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_concepts(text)


def test_the_shipped_vocabulary_has_at_least_150_concepts_and_unique_labels() -> None:
    concepts = load_concepts()
    assert len(concepts) >= 150
    assert len({concept.label for concept in concepts}) == len(concepts)


def test_a_caption_names_thing_style_and_background() -> None:
    random = Random(0)
    for _ in range(300):
        style, background = random.choice(STYLES), random.choice([None, *BACKGROUNDS])
        caption = draw_caption(APPLE, style, background, random, style_named=True)
        assert "apple" in caption
        assert (style in caption.replace(",", "").split()) is True
        spellings = COLOUR_SPELLINGS.get(background or "", (background or "",))
        assert any(spelling in caption for spelling in spellings)


def test_an_unnamed_style_and_plain_white_leave_no_trace() -> None:
    random = Random(1)
    captions = {draw_caption(APPLE, "3d", None, random, style_named=False) for _ in range(300)}
    words = {word for caption in captions for word in caption.split()}
    assert not words & {"3d", "flat", "background", "white", "on"}
    assert {"a red apple", "red apple", "the red apple", "an apple"} <= captions


def test_flat_is_always_named_and_3d_seldom() -> None:
    random = Random(2)
    named = {
        style: sum(
            style in draw_caption(APPLE, style, None, random).replace(",", " ").split()
            for _ in range(400)
        )
        for style in STYLES
    }
    assert named["flat"] == 400
    assert 60 < named["3d"] < 140


def test_a_seed_fixes_the_captions() -> None:
    first, second = ([draw_caption(APPLE, "3d", "blue", r) for _ in range(50)] for r in _twins())
    assert first == second
    assert len(set(first)) > 10


def _twins() -> tuple[Random, Random]:
    return Random(3), Random(3)


def test_every_word_of_every_caption_is_listed() -> None:
    concepts, random = load_concepts(), Random(4)
    known = set(known_words(concepts))
    for concept in concepts:
        for style in STYLES:
            caption = draw_caption(concept, style, random.choice(list(BACKGROUNDS)), random)
            assert set(caption.replace(",", "").split()) <= known


@pytest.mark.parametrize(
    ("phrase", "bare"),
    [("a red apple", "red apple"), ("an owl", "owl"), ("the sun", "sun"), ("fries", "fries")],
)
def test_articles_come_off(phrase: str, bare: str) -> None:
    assert strip_article(phrase) == bare


@pytest.mark.parametrize(("word", "article"), [("owl", "an"), ("unicorn", "a"), ("dog", "a")])
def test_articles_follow_the_first_letter(word: str, article: str) -> None:
    assert article_for(word) == article
