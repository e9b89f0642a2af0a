"""The caption grammar and the vocabulary's format."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from models.recipe.captions import (
    BACKGROUNDS,
    COLOUR_SPELLINGS,
    LAYOUTS,
    OBJECT_COLOURS,
    PLAIN,
    STYLES,
    Concept,
    Scene,
    article_for,
    draw_any_scene,
    draw_caption,
    draw_setting,
    free_colours,
    known_words,
    load_concepts,
    parse_concepts,
    plural,
    strip_article,
)
from services.diffusion.model import Vocabulary
from services.diffusion.vocabulary import WordList

APPLE = Concept(label="red apple", phrase="a red apple", synonyms=("an apple",))


def test_a_line_holds_label_phrase_and_synonyms() -> None:
    text = "# comment\n\nalarm clock | an alarm clock | a clock, the time\npear | a pear\n"
    clock, pear = parse_concepts(text)
    assert clock.names == ("an alarm clock", "a clock", "the time")
    assert pear == Concept(label="pear", phrase="a pear", synonyms=())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pear", "line 1: expected"),
        ("pear |", "line 1: expected"),
        ("| a pear", "line 1: expected"),
        ("pear | a pear | x | more", "line 1: expected"),
        ("pear | a pear\nfruit | the fruit | a pear", "line 2: 'a pear' already names 'pear'"),
        ("pear | a pear\nfruit | the pear", "line 2: 'the pear' already names 'pear'"),
    ],
)
def test_a_malformed_vocabulary_names_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_concepts(text)


def test_the_vocabulary_has_at_least_1000_concepts_and_unique_labels() -> None:
    concepts = load_concepts()
    assert len(concepts) >= 1000
    assert len({concept.label for concept in concepts}) == len(concepts)


def test_a_caption_names_thing_style_and_background() -> None:
    random = Random(0)
    for _ in range(300):
        style, background = random.choice(STYLES), random.choice([None, *BACKGROUNDS])
        scene = Scene(background=background)
        caption = draw_caption(APPLE, style, scene, random, style_named=True)
        assert "apple" in caption
        assert style in caption.replace(",", "").split()
        spellings = COLOUR_SPELLINGS.get(background or "", (background or "",))
        assert any(spelling in caption for spelling in spellings)


def test_an_unnamed_style_and_plain_white_leave_no_trace() -> None:
    random = Random(1)
    captions = {draw_caption(APPLE, "3d", PLAIN, random, style_named=False) for _ in range(300)}
    words = {word for caption in captions for word in caption.split()}
    assert not words & {"3d", "flat", "line", "background", "white", "on"}
    assert {"a red apple", "red apple", "the red apple", "an apple"} <= captions


def test_a_colour_takes_the_place_of_the_own_one() -> None:
    captions = [_caption(Scene(colour="blue"), seed) for seed in range(200)]
    assert all("blue apple" in caption and "red" not in caption for caption in captions)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("two", "two red apples"), ("small", "small red apple"), ("left", "on the left")],
)
def test_a_layout_is_told(layout: str, expected: str) -> None:
    spoken = {_caption(Scene(layout=layout), seed) for seed in range(60)}
    assert any(expected in caption for caption in spoken)
    assert all(any(way in c for way in LAYOUTS[layout]) for c in spoken)


def _caption(scene: Scene, seed: int) -> str:
    return draw_caption(APPLE, "3d", scene, Random(seed))


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("slice of pizza", "slices of pizza"),
        ("cherry", "cherries"),
        ("fox", "foxes"),
        ("toy", "toys"),
        ("wolf", "wolves"),
        ("person with a beard", "people with a beard"),
        ("person surfing", "people surfing"),
        ("house with garden", "houses with garden"),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_flat_is_always_named_and_3d_seldom() -> None:
    random = Random(2)
    named = {
        style: sum(
            style in draw_caption(APPLE, style, PLAIN, random).replace(",", " ").split()
            for _ in range(400)
        )
        for style in STYLES
    }
    assert named["flat"] == named["line"] == 400
    assert 60 < named["3d"] < 140


def test_a_setting_says_some_of_what_is_there_and_names_no_thing() -> None:
    scene = Scene(background="light blue", colour="red", layout="two")
    spellings = ("light blue", "sky blue")
    drawn = [draw_setting("flat", scene, Random(seed)) for seed in range(200)]
    said = [
        frozenset(
            name
            for name, words in (
                ("style", ("flat",)),
                ("on", spellings),
                ("c", ("red",)),
                ("2", ("two",)),
            )
            if any(word in caption for word in words)
        )
        for caption in drawn
    ]
    assert {len(names) for names in said} == {1, 2, 3, 4}
    assert all(
        len(caption.split(", ")) == len(names) for caption, names in zip(drawn, said, strict=True)
    )
    assert "background" not in " ".join(draw_setting("line", PLAIN, Random(s)) for s in range(50))


def test_a_seed_fixes_the_captions() -> None:
    blue = Scene(background="blue")
    first, second = ([draw_caption(APPLE, "3d", blue, r) for _ in range(50)] for r in _twins())
    assert first == second
    assert len(set(first)) > 10


def _twins() -> tuple[Random, Random]:
    return Random(3), Random(3)


def test_every_word_of_every_caption_is_listed() -> None:
    concepts, random = load_concepts(), Random(4)
    nothing = Vocabulary(concepts=(), styles=(), backgrounds=())
    word_list = WordList(nothing, known_words(concepts))
    for concept in concepts:
        for style in STYLES:
            # A colour may complete another name: "red heart" in "a red heart decoration".
            scene = replace(draw_any_scene(concept, random), colour=None)
            caption = draw_caption(concept, style, scene, random)
            assert word_list.unknown_words(caption) == [], caption


@pytest.mark.parametrize(
    ("phrase", "bare"),
    [("a red apple", "red apple"), ("an owl", "owl"), ("the sun", "sun"), ("fries", "fries")],
)
def test_articles_come_off(phrase: str, bare: str) -> None:
    assert strip_article(phrase) == bare


@pytest.mark.parametrize(("word", "article"), [("owl", "an"), ("unicorn", "a"), ("dog", "a")])
def test_articles_follow_the_first_letter(word: str, article: str) -> None:
    assert article_for(word) == article


def test_no_colour_makes_a_thing_another_thing() -> None:
    labels = ("red heart", "light blue heart", "blue heart", "rocket")
    concepts = tuple(Concept(label=name, phrase=name, synonyms=()) for name in labels)
    left = ("orange", "yellow", "green", "purple", "pink")
    assert free_colours(concepts) == (left, left, left, OBJECT_COLOURS)
    whole = load_concepts()
    free = dict(zip((concept.label for concept in whole), free_colours(whole), strict=True))
    assert (free["red heart"], free["blue circle"]) == ((), ("pink",))
    assert free["red apple"] == tuple(c for c in OBJECT_COLOURS if c not in ("red", "green"))
