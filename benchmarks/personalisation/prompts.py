"""What is drawn with every model: the subject on backgrounds, its class, and other things."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.personalisation.subject import CLASS_PROMPT, CLASS_WORD, INSTANCE_PROMPT

TAUGHT, HELD_OUT = ("white", "yellow"), ("green", "grey", "purple")
SEEDS = (0, 1, 2)
_THINGS = (
    *("teddy bear", "dog face", "red apple", "rocket", "house", "penguin"),
    *("guitar", "snowman", "ghost", "castle", "octopus", "cupcake"),
)
_OTHER_BACKGROUNDS = ("white", "green")


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One picture to draw."""

    group: str
    """`subject`, `class` or `other`."""
    prompt: str
    background: str
    seed: int
    concept: str | None = None
    """The thing of the vocabulary that it should show."""


def orders() -> list[Order]:
    """Every picture, in a fixed order."""
    subject = [
        Order(group="subject", prompt=_on(INSTANCE_PROMPT, each), background=each, seed=seed)
        for each in (*TAUGHT, *HELD_OUT)
        for seed in SEEDS
    ]
    classes = [
        Order(
            group="class",
            prompt=_on(prompt, background),
            background=background,
            seed=seed,
            concept=CLASS_WORD,
        )
        for prompt in (CLASS_PROMPT, f"a {CLASS_WORD}")
        for background in ("white", "green")
        for seed in SEEDS
    ]
    others = [
        Order(
            group="other",
            prompt=_on(f"a {thing}", background),
            background=background,
            seed=0,
            concept=thing,
        )
        for background in _OTHER_BACKGROUNDS
        for thing in _THINGS
    ]
    return [*subject, *classes, *others]


def population() -> dict[str, list[str]]:
    """By background: prompts of things that are not the subject, for the base model."""
    return {
        background: [_on(f"a {thing}", background) for thing in _THINGS]
        for background in (*TAUGHT, *HELD_OUT)
    }


def _on(prompt: str, background: str) -> str:
    return prompt if background == "white" else f"{prompt} on a {background} background"
