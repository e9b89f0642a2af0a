"""What the evaluation asks a model to draw: a fixed choice of pairs, held-out pairs and colours.

Called by `evaluate` and `verdicts`. The same vocabulary and counts give the same questions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from models.recipe.captions import (
    OBJECT_COLOURS,
    STYLES,
    Concept,
    article_for,
    load_concepts,
    strip_article,
)
from models.recipe.drawing import Order
from models.recipe.heldout import COLOUR_CONCEPTS, held_out_pairs

TRAINED, HELD_OUT, COLOUR = "trained", "held out", "colour"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One picture to draw and what it must show; `colour` None is the thing's own."""

    kind: str
    concept_index: int
    style: str
    prompt: str
    seed: int = 0
    colour: str | None = None

    @property
    def order(self) -> Order:
        """What the painter wants."""
        return Order(prompt=self.prompt, seed=self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """What a model was shown: indexes into the recipe's concepts, and styles."""

    concept_indexes: tuple[int, ...]
    styles: tuple[str, ...]


def whole_scope(concepts: Sequence[Concept]) -> Scope:
    """All things in all styles."""
    return Scope(concept_indexes=tuple(range(len(concepts))), styles=STYLES)


def read_scope(folder: Path) -> Scope:
    """The recipe's concepts and styles that the model's card names."""
    vocabulary = json.loads((folder / "limner.json").read_text())["vocabulary"]
    names = set(vocabulary["concepts"])
    return Scope(
        concept_indexes=tuple(
            index
            for index, concept in enumerate(load_concepts())
            if strip_article(concept.phrase) in names
        ),
        styles=tuple(style for style in STYLES if style in vocabulary["styles"]),
    )


def prompt_for(phrase: str, style: str) -> str:
    """What a user types: 3d is what they get without asking."""
    return phrase if style == "3d" else f"{phrase}, {style} style"


def choose_questions(concepts: Sequence[Concept], scope: Scope, count: int) -> list[Question]:
    """`count` trained pairs at random, and all held-out pairs and colours that are in scope."""
    kept_back = held_out_pairs(concepts)
    pairs = [(index, style) for index in scope.concept_indexes for style in scope.styles]
    trained = [pair for pair in pairs if pair not in kept_back]
    chosen = Random(4).sample(trained, min(count, len(trained)))
    asked = [(TRAINED, pair) for pair in chosen]
    asked += [(HELD_OUT, pair) for pair in pairs if pair in kept_back]
    questions = [
        Question(
            kind=kind,
            concept_index=index,
            style=style,
            prompt=prompt_for(concepts[index].phrase, style),
        )
        for kind, (index, style) in asked
    ]
    return questions + _colours(concepts, scope)


def _colours(concepts: Sequence[Concept], scope: Scope) -> list[Question]:
    return [
        Question(
            kind=COLOUR,
            concept_index=index,
            style="3d",
            prompt=f"{article_for(colour)} {colour} {concepts[index].colourless_names[0]}",
            colour=colour,
        )
        for index in scope.concept_indexes
        if concepts[index].label in COLOUR_CONCEPTS
        for colour in OBJECT_COLOURS
        if colour != COLOUR_CONCEPTS[concepts[index].label]
    ]
