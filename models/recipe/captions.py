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

STYLES = ("3d", "flat", "line")
STYLE_NAMED_SHARE = {"3d": 0.25, "flat": 1.0, "line": 1.0}
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

OBJECT_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
"""Colours that a thing may be asked for in: 'a blue apple'."""
COLOUR_WORDS = frozenset(
    (*OBJECT_COLOURS, "black", "white", "grey", "brown", "light", "gold", "golden")
)

LAYOUTS: dict[str, tuple[str, ...]] = {
    "whole": ("",),
    "small": ("small", "tiny"),
    "top left": ("in the top left corner", "in the top left", "in the corner"),
    "top right": ("in the top right corner", "in the top right", "in the corner"),
    "bottom left": ("in the bottom left corner", "in the bottom left", "in the corner"),
    "bottom right": ("in the bottom right corner", "in the bottom right", "in the corner"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "two": ("two",),
    "three": ("three",),
    "four": ("four",),
}
"""How things lie on the canvas, and what captions call it."""
COUNTS = ("two", "three", "four")

_ARTICLES = ("a ", "an ", "the ")
_LEADS = ("picture", "image", "drawing", "illustration", "photo", "icon", "emoji")
_FILLERS = ("cute", "nice", "beautiful", "simple", "single", "lovely")
_STYLE_NAMES = {"3d": ("3d",), "flat": ("flat",), "line": ("line", "line art")}
_STYLE_TAILS = {
    "3d": ("3d", "in 3d", "3d style", "in 3d style", "3d render"),
    "flat": ("flat", "flat style", "in flat style", "flat design", "flat icon"),
    "line": ("line", "line style", "in line style", "line art", "black and white line drawing"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """One drawable thing: its emoji `label`, the main `phrase`, other `synonyms`."""

    label: str
    phrase: str
    synonyms: tuple[str, ...]

    @property
    def colourless_names(self) -> tuple[str, ...]:
        """Names, without article, that do not say a colour: what 'a blue …' may continue with."""
        bare = (strip_article(name) for name in self.names)
        return tuple(name for name in bare if not COLOUR_WORDS & set(name.split()))

    @property
    def is_countable(self) -> bool:
        """Whether the phrase has an indefinite article, so that there can be two."""
        return self.phrase.startswith(("a ", "an "))

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
    if not 2 <= len(fields) <= 3 or not fields[0] or not fields[1]:
        raise ValueError(f"line {number}: expected 'label | phrase | synonyms'")
    synonyms = fields[2].split(",") if len(fields) == 3 else ()
    return Concept(
        label=fields[0],
        phrase=fields[1],
        synonyms=tuple(name.strip() for name in synonyms if name.strip()),
    )


def load_concepts(path: Path = CONCEPTS_FILE) -> tuple[Concept, ...]:
    """The vocabulary that ships beside this module."""
    return parse_concepts(path.read_text())


def name_owners(concepts: Sequence[Concept]) -> dict[str, int]:
    """Every name without article, and plurals, with the index of the concept that it names.

    A plural that another concept has as a name is that concept's.
    """
    result = {strip_article(name): i for i, c in enumerate(concepts) for name in c.names}
    for index, concept in enumerate(concepts):
        for name in concept.names:
            bare = strip_article(name)
            if bare != name and concept.is_countable:
                result.setdefault(plural(bare), index)
    return result


def free_colours(concepts: Sequence[Concept]) -> tuple[tuple[str, ...], ...]:
    """For each concept the colours that do not make it another: no green for the red apple.

    A heart has none, since a red heart in blue is the blue heart.
    """

    def split(concept: Concept) -> tuple[str, frozenset[str]]:
        words = concept.label.split()
        return " ".join(w for w in words if w not in COLOUR_WORDS), COLOUR_WORDS & set(words)

    taken: dict[str, set[str]] = {}
    for bare, colours in map(split, concepts):
        taken.setdefault(bare, set()).update(colours)
    return tuple(
        tuple(colour for colour in OBJECT_COLOURS if colour not in taken[bare])
        for bare, _ in map(split, concepts)
    )


def strip_article(phrase: str) -> str:
    """'a red apple' -> 'red apple'; phrases without an article are returned unchanged."""
    for article in _ARTICLES:
        if phrase.startswith(article):
            return phrase.removeprefix(article)
    return phrase


def article_for(word: str) -> str:
    """The indefinite article by the first letter; u counts as a consonant: 'a unicorn'."""
    return "an" if word[0] in "aeio" else "a"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a caption may say about a picture beside thing and style.

    `background` None is plain white, not mentioned; `colour` None is the thing's own.
    """

    background: str | None = None
    colour: str | None = None
    layout: str = "whole"


PLAIN = Scene()


def draw_any_scene(concept: Concept, random: Random) -> Scene:
    """Half with a background, some in a colour, some laid out; not both."""
    background = None if random.random() < 0.5 else random.choice(tuple(BACKGROUNDS))
    roll = random.random()
    if roll < 0.2 and concept.colourless_names:
        return Scene(background=background, colour=random.choice(OBJECT_COLOURS))
    if roll < 0.4:
        layouts = [name for name in LAYOUTS if concept.is_countable or name not in COUNTS]
        return Scene(background=background, layout=random.choice(layouts))
    return Scene(background=background)


def known_words(concepts: Sequence[Concept]) -> list[str]:
    """Every name, and every other word that a caption may hold, sorted."""
    phrases = [*_ARTICLES, *_LEADS, *_FILLERS, *BACKGROUNDS, "of", "on", "with", "background"]
    phrases += [tail for tails in _STYLE_TAILS.values() for tail in tails]
    phrases += [name for names in _STYLE_NAMES.values() for name in names]
    phrases += [word for spellings in COLOUR_SPELLINGS.values() for word in spellings]
    phrases += [phrase for ways in LAYOUTS.values() for phrase in ways]
    return sorted(
        {word for phrase in phrases for word in phrase.split()}.union(name_owners(concepts))
    )


def draw_caption(
    concept: Concept,
    style: str,
    scene: Scene,
    random: Random,
    *,
    style_named: bool | None = None,
) -> str:
    """One caption out of the many that describe this picture.

    `style_named` says whether the style is mentioned; None leaves that to `STYLE_NAMED_SHARE`.
    """
    if style_named is None:
        style_named = random.random() < STYLE_NAMED_SHARE[style]
    bare, had_article = _thing(concept, scene, random)
    adjectives = [random.choice(_FILLERS)] if random.random() < 0.08 else []
    tail = ""
    if style_named:
        if random.random() < 0.5:
            adjectives.insert(0, random.choice(_STYLE_NAMES[style]))
        else:
            tail = random.choice((" ", ", ")) + random.choice(_STYLE_TAILS[style])
    if scene.layout == "small":
        adjectives.insert(0, random.choice(LAYOUTS["small"]))
    caption = " ".join([*adjectives, bare])
    if scene.layout in COUNTS:
        caption = f"{scene.layout} {caption}"
    else:
        roll = random.random()
        if had_article and roll < 0.65:
            caption = f"{article_for(caption)} {caption}"
        elif had_article and roll < 0.72:
            caption = f"the {caption}"
    if random.random() < 0.2:
        lead = random.choice(_LEADS)
        caption = f"{random.choice((article_for(lead) + ' ', ''))}{lead} of {caption}"
    if scene.layout not in ("whole", "small", *COUNTS):
        caption += f" {random.choice(LAYOUTS[scene.layout])}"
    caption += tail
    if scene.background is not None:
        caption += _background_phrase(scene.background, random)
    return caption


def draw_setting(style: str, scene: Scene, random: Random) -> str:
    """A caption that names no thing, only some of what else there is: 'blue background, flat'.

    So that an unknown thing still gets its background.
    """
    said = [random.choice(_STYLE_TAILS[style])]
    if scene.colour is not None:
        said.append(scene.colour)
    if scene.layout != "whole":
        said.append(random.choice(LAYOUTS[scene.layout]))
    if scene.background is not None:
        said.append(_background_phrase(scene.background, random).strip(", "))
    return ", ".join(random.sample(said, random.randint(1, len(said))))


def _thing(concept: Concept, scene: Scene, random: Random) -> tuple[str, bool]:
    """Name without article, with colour and in the plural if asked; and whether it had one."""
    if scene.colour is not None:
        return f"{scene.colour} {random.choice(concept.colourless_names)}", True
    if scene.layout in COUNTS:
        return plural(strip_article(concept.phrase)), True
    phrase = concept.phrase if random.random() < 0.5 else random.choice(concept.names)
    bare = strip_article(phrase)
    return bare, bare != phrase


_IRREGULAR = {
    **{"man": "men", "woman": "women", "person": "people", "child": "children", "mouse": "mice"},
    **{"foot": "feet", "tooth": "teeth", "goose": "geese", "wolf": "wolves", "leaf": "leaves"},
    **{"knife": "knives", "ox": "oxen", "elf": "elves", "scarf": "scarves", "loaf": "loaves"},
    **{name: name for name in ("fish", "deer", "moose", "bison", "shrimp", "squid", "rice")},
}
_AFTER_HEAD = frozenset(
    ("of", "with", "without", "in", "on", "behind", "and", "facing", "showing", "getting")
)


def plural(bare: str) -> str:
    """'slice of pizza' -> 'slices of pizza'; the head noun stands before any preposition."""
    words = bare.split()
    places = [index for index, word in enumerate(words) if index and word in _AFTER_HEAD]
    head = 0 if words[0] == "person" else (places[0] if places else len(words)) - 1
    words[head] = _plural_word(words[head])
    return " ".join(words)


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


def _background_phrase(background: str, random: Random) -> str:
    colour = random.choice(COLOUR_SPELLINGS.get(background, (background,)))
    pattern = random.choices(
        (" on {a} {c} background", " on {c}", " with {a} {c} background", ", {c} background"),
        weights=(5, 2, 2, 1),
    )[0]
    return pattern.format(a=article_for(colour), c=colour)
