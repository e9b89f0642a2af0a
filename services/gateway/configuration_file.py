"""YAML files that a platform team writes: read strictly, every mistake reported at once.

Used for the tiers and the prices. A key that is there twice is a mistake too.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_Content = TypeVar("_Content", bound=BaseModel)


class ConfigurationFileError(ValueError):
    """The file cannot be read or has mistakes; the message lists them all, a line each."""


def read_configuration(path: Path, content: type[_Content]) -> _Content:
    """What is in the file at `path`. Raises ConfigurationFileError."""
    try:
        return content.model_validate(yaml.load(path.read_bytes(), Loader=_StrictLoader))
    except ValidationError as error:
        mistakes = "\n".join(f"  {_mistake(detail)}" for detail in error.errors())
        raise ConfigurationFileError(f"mistakes in {path}:\n{mistakes}") from None
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigurationFileError(f"{path} cannot be read: {error}") from error


def _mistake(detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "the file"
    if detail["type"] == "missing":
        return f"{where}: is required"
    if detail["type"] == "extra_forbidden":
        return f"{where}: is not a setting"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{where}: {message}, got {detail['input']!r:.100}"


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping with a key twice, of which PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As SafeLoader's, or a ConstructorError that says where the second key is."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused by what follows
            if key in seen:
                problem = f"the key {key!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
