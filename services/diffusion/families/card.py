"""`limner.json`: what a model's author tells Limner, beside `model_index.json`. Optional.

    {
      "display_name": "Limner Emoji", "description": "…", "license": "Apache-2.0",
      "vocabulary": {"concepts": ["red apple", …], "styles": ["3d", …], "backgrounds": […]},
      "words": ["puppy", …],
      "defaults": {"width": 128, "height": 128, "step_count": 20, "guidance_scale": 3.0,
                   "sampler": "ddim"},
      "limits": {"min_side": 64, …}
    }

Every key may be left out, and so may every key of `defaults` and `limits` (the fields of
`ImageDefaults` and `ImageLimits`): the family's own value then stands. `words` are understood
without being things, styles or backgrounds of their own: synonyms and fillers. Unknown keys are
refused, so that a misspelt one is noticed.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from services.diffusion.families.errors import BrokenModelError
from services.diffusion.families.files import read_json
from services.diffusion.model import ImageDefaults, ImageLimits, Vocabulary

CARD_FILE = "limner.json"

ValuesT = TypeVar("ValuesT", ImageDefaults, ImageLimits)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class VocabularyPart(_Part):
    """Words of a closed vocabulary."""

    concepts: list[str]
    styles: list[str] = []
    backgrounds: list[str] = []


class ModelCard(_Part):
    """Contents of `limner.json`."""

    display_name: str = ""
    description: str = ""
    license: str = ""
    vocabulary: VocabularyPart | None = None
    words: list[str] = []
    defaults: dict[str, int | float | str] = {}
    limits: dict[str, int | float] = {}


def read_card(folder: Path) -> ModelCard:
    """The card in `folder`, an empty one if there is none.

    Raises `BrokenModelError` listing everything that is wrong with it.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        return ModelCard()
    try:
        return ModelCard.model_validate(read_json(path))
    except ValidationError as error:
        raise BrokenModelError(f"{path}: {_summary(error)}") from error


def overridden(values: ValuesT, overrides: dict[str, Any], path: str) -> ValuesT:
    """`values` with `overrides` in place; `path` names where those come from.

    Raises `BrokenModelError` for an unknown or ill-typed key.
    """
    known = {field.name: type(getattr(values, field.name)) for field in fields(values)}
    accepted: dict[str, Any] = {}
    for key, value in overrides.items():
        if key not in known:
            raise BrokenModelError(f"{path}: {key} is not one of {', '.join(known)}")
        if not isinstance(value, int | float if known[key] is float else known[key]):
            raise BrokenModelError(f"{path}: {key} must be {known[key].__name__}, not {value!r}")
        accepted[key] = known[key](value)
    return replace(values, **accepted)


def vocabulary_of(card: ModelCard) -> Vocabulary | None:
    """The card's vocabulary; None for an open one."""
    if card.vocabulary is None:
        return None
    return Vocabulary(
        concepts=tuple(card.vocabulary.concepts),
        styles=tuple(card.vocabulary.styles),
        backgrounds=tuple(card.vocabulary.backgrounds),
    )


def _summary(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
