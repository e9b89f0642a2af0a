"""Scopes: what a key may be used for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias, cast, get_args

Scope: TypeAlias = Literal["admin", "generate", "train", "upscale"]

ALL_SCOPES: Final[frozenset[Scope]] = frozenset(get_args(Scope))
DEFAULT_SCOPES: Final[frozenset[Scope]] = ALL_SCOPES - {"admin"}
"""Of keys that are made without naming scopes."""


def join_scopes(scopes: Iterable[Scope]) -> str:
    """As one text, sorted, with commas: how the database has them."""
    return ",".join(sorted(scopes))


def split_scopes(text: str) -> frozenset[Scope]:
    """From a text with commas. Raises ValueError naming what is no scope."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := names - ALL_SCOPES:
        known = ", ".join(sorted(ALL_SCOPES))
        raise ValueError(f"no scope: {', '.join(sorted(unknown))}; the scopes are {known}")
    return cast("frozenset[Scope]", frozenset(names))
