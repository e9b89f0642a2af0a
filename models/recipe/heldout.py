"""What the training never sees, so that the evaluation can ask for it.

Called by the stages that train, by `evaluate` and by the curve. Fixed: changing this file makes
figures of different runs incomparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from models.recipe.captions import STYLES, Concept

Pair = tuple[int, str]
"""Concept index and style."""

FIRST_EDITION_COUNT = 163
"""Leading concepts that weights of the first edition, which training may start from, have seen."""
SHARE = 0.05
COLOUR_CONCEPTS: dict[str, str] = {
    **dict.fromkeys(("red apple", "strawberry", "rose", "tulip", "automobile", "guitar"), "red"),
    **dict.fromkeys(("fire engine", "balloon", "backpack", "scarf", "butterfly"), "red"),
    **dict.fromkeys(("banana", "pear", "key", "t-shirt"), "yellow"),
    **dict.fromkeys(("teddy bear", "crown"), "orange"),
    **dict.fromkeys(("necktie", "couch and lamp"), "blue"),
    "frog": "green",
}
"""Labels of things that are never shown in another colour than their own, which is named."""


def held_out_pairs(concepts: Sequence[Concept]) -> frozenset[Pair]:
    """5 % of all pairs; of one concept never more than one style."""
    count = round(SHARE * len(concepts) * len(STYLES))
    later = range(FIRST_EDITION_COUNT, len(concepts))
    chosen = Random(20).sample(later, min(count, len(later)))
    return frozenset((concept, STYLES[place % len(STYLES)]) for place, concept in enumerate(chosen))
