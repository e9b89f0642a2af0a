"""What the user of a command calls the fields of a request: its options and arguments.

A parameter of a command is named like the field that it fills, which is how it is found here. The
few that fill others, or several, are in `_OTHERS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import typer

_OTHERS: Mapping[str, tuple[str, str]] = {
    "width": ("size", "width"),
    "height": ("size", "height"),
    "dataset_id": ("photos", ""),
    "pictures": ("photos", ""),
    "configuration_yaml.optimization.step_count": ("steps", ""),
}
"""By field: a parameter that fills it where it is given, and which part of that it is."""


class FieldNames:
    """The names of fields in the command that `context` runs."""

    def __init__(self, context: typer.Context) -> None:
        self._context = context
        self._parameters = {each.name: each for each in context.command.params}

    def __call__(self, field: str) -> str:
        """Return how a user writes a field, by its path; the path itself where he cannot."""
        for place, rest in _enclosing(field):
            other, part = _OTHERS.get(place, ("", ""))
            if other and self._is_given(other):
                return _join(self._label(other), part)
            if place in self._parameters:
                return _join(self._label(place), rest)
        return field

    def _is_given(self, name: str) -> bool:
        if name not in self._parameters:
            return False
        source = self._context.get_parameter_source(name)
        return source is not None and source.name != "DEFAULT"

    def _label(self, name: str) -> str:
        parameter = self._parameters[name]
        if parameter.param_type_name == "argument":
            return parameter.metavar or name.upper()
        return max(parameter.opts, key=len)


def _enclosing(field: str) -> Iterator[tuple[str, str]]:
    """Yield a path and those of the fields that it lies in, each with the rest of the path."""
    yield field, ""
    for cut in reversed([match.start() for match in re.finditer(r"[.\[]", field)]):
        yield field[:cut], field[cut:].removeprefix(".")


def _join(label: str, part: str) -> str:
    return f"{label} ({part})" if part else label
