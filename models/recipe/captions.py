"""The caption grammar: what the model is told about a picture.

Called by the training stages for captions and by `export` for the vocabulary. Captions are
drawn from a generator that the caller passes, so a seed fixes them. Knows nothing of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

CONCEPTS_FILE = Path(__file__).with_name("concepts.txt")

STYLES = ("3d", "flat")
STYLE_NAMED_SHARE = {"3d": 0.25, "flat": 1.0}
"""How often a caption names its style: who names none gets 3d."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (20, 20, 22),
    "grey": (150, 150, 155),
    "red": (214, 45, 48),
    "orange": (250, 140, 40),
    "yellow": (252, 218, 72),
    "green": (72, 170, 84),
    "blue": (52, 110, 220),
    "light blue": (150, 208, 250),
    "purple": (134, 76, 196),
    "pink": (252, 160, 202),
    "brown": (128, 84, 50),
}
COLOUR_SPELLINGS: dict[str, tuple[str, ...]] = {
    "grey": ("grey", "gray"),
    "light blue": ("light blue", "sky blue"),
}

_ARTICLES = ("a ", "an ", "the ")
_LEADS = ("picture", "image", "drawing", "illustration", "photo", "icon", "emoji")
_FILLERS = ("cute", "nice", "beautiful", "big", "little", "small", "simple", "single", "lovely")
_STYLE_NAMES = {"3d": ("3d",), "flat": ("flat",)}
_STYLE_TAILS = {
    "3d": ("3d", "in 3d", "3d style", "in 3d style", "3d render"),
    "flat": ("flat", "flat style", "in flat style", "flat design", "flat icon"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """One drawable thing: its emoji `label`, the main `phrase`, other `synonyms`."""

    label: str
    phrase: str
    synonyms: tuple[str, ...]
    may_mirror: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Every accepted name, the main phrase first."""
        return (self.phrase, *self.synonyms)


def parse_concepts(text: str) -> tuple[Concept, ...]:
    """Parse the vocabulary format of `concepts.txt`.

    Raises ValueError that names the line for a malformed entry or a name used twice.
    """
    concepts: list[Concept] = []
    owners: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        concept = _parse_line(line, number)
        for name in concept.names:
            key = strip_article(name)
            if owners.setdefault(key, concept.label) != concept.label:
                raise ValueError(f"line {number}: {name!r} already names {owners[key]!r}")
        concepts.append(concept)
    return tuple(concepts)


def _parse_line(line: str, number: int) -> Concept:
    fields = [field.strip() for field in line.split("|")]
    if not 2 <= len(fields) <= 4 or not fields[0] or not fields[1]:
        raise ValueError(f"line {number}: expected 'label | phrase | synonyms | flags'")
    fields += [""] * (4 - len(fields))
    synonyms = tuple(name.strip() for name in fields[2].split(",") if name.strip())
    if fields[3] not in ("", "fixed"):
        raise ValueError(f"line {number}: unknown flag {fields[3]!r}")
    return Concept(
        label=fields[0], phrase=fields[1], synonyms=synonyms, may_mirror=fields[3] != "fixed"
    )


def load_concepts(path: Path = CONCEPTS_FILE) -> tuple[Concept, ...]:
    """The vocabulary that ships beside this module."""
    return parse_concepts(path.read_text())


def strip_article(phrase: str) -> str:
    """'a red apple' -> 'red apple'; phrases without an article are returned unchanged."""
    for article in _ARTICLES:
        if phrase.startswith(article):
            return phrase.removeprefix(article)
    return phrase


def article_for(word: str) -> str:
    """The indefinite article by the first letter; u counts as a consonant: 'a unicorn'."""
    return "an" if word[0] in "aeio" else "a"


def known_words(concepts: Sequence[Concept]) -> list[str]:
    """Every word that a caption may hold, sorted."""
    phrases = [*_ARTICLES, *_LEADS, *_FILLERS, *BACKGROUNDS, "of", "on", "with", "background"]
    phrases += [name for concept in concepts for name in concept.names]
    phrases += [tail for tails in _STYLE_TAILS.values() for tail in tails]
    phrases += [word for spellings in COLOUR_SPELLINGS.values() for word in spellings]
    return sorted({word for phrase in phrases for word in phrase.split()})


def draw_caption(
    concept: Concept,
    style: str,
    background: str | None,
    random: Random,
    *,
    style_named: bool | None = None,
) -> str:
    """One caption out of the many that describe this picture.

    `background` None means plain white, not mentioned. `style_named` says whether the style is
    mentioned; None leaves that to `STYLE_NAMED_SHARE`.
    """
    if style_named is None:
        style_named = random.random() < STYLE_NAMED_SHARE[style]
    phrase = concept.phrase if random.random() < 0.5 else random.choice(concept.names)
    bare = strip_article(phrase)
    had_article = bare != phrase
    adjectives = [random.choice(_FILLERS)] if random.random() < 0.08 else []
    tail = ""
    if style_named:
        if random.random() < 0.5:
            adjectives.insert(0, random.choice(_STYLE_NAMES[style]))
        else:
            tail = random.choice((" ", ", ")) + random.choice(_STYLE_TAILS[style])
    caption = " ".join([*adjectives, bare])
    roll = random.random()
    if had_article and roll < 0.65:
        caption = phrase if caption == bare else f"{article_for(caption)} {caption}"
    elif had_article and roll < 0.72:
        caption = f"the {caption}"
    if random.random() < 0.2:
        lead = random.choice(_LEADS)
        caption = f"{random.choice((article_for(lead) + ' ', ''))}{lead} of {caption}"
    caption += tail
    if background is not None:
        caption += _background_phrase(background, random)
    return caption


def _background_phrase(background: str, random: Random) -> str:
    colour = random.choice(COLOUR_SPELLINGS.get(background, (background,)))
    pattern = random.choices(
        (" on {a} {c} background", " on {c}", " with {a} {c} background", ", {c} background"),
        weights=(5, 2, 2, 1),
    )[0]
    return pattern.format(a=article_for(colour), c=colour)
