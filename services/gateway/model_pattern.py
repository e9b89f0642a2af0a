"""Which models a shell pattern in a tier or a table of prices means."""

from __future__ import annotations

import fnmatch

from services.storage.catalog import base_name

ANY_MODEL = "*"


def matches_model(pattern: str, model: str) -> bool:
    """Whether `pattern` means `model`; a trained model goes by the name of its base."""
    return pattern == ANY_MODEL or fnmatch.fnmatchcase(base_name(model), pattern)
