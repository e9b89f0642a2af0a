"""What `limner train` asks for: options and a configuration file, joined; options win.

The file is YAML. Some of its keys are fields of the request (see `_REQUEST_KEYS`); the others are
settings of the run and go to the server as they are, which refuses unknown ones all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_DEFAULT_TOKEN = "sks"
_REQUEST_KEYS = frozenset(
    {
        *("base_model", "token", "class", "instance_prompt", "class_prompt", "method"),
        *("model_name", "webhook_url", "webhook_secret"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """A training to be asked for."""

    base_model: str
    """Empty: the server's only one."""
    instance_prompt: str
    options: Mapping[str, Any]
    """Of `TrainOptions`."""


def find_photos(paths: list[Path]) -> list[Path]:
    """The pictures among files and in folders, by name. A usage error where there are none."""
    found = list(_pictures(paths))
    if not found:
        suffixes = ", ".join(sorted(_SUFFIXES))
        raise typer.BadParameter(f"there are no pictures ({suffixes})", param_hint="PHOTOS")
    return found


def plan_request(
    config: Path | None, *, class_word: str | None, prior: bool, steps: int | None, **given: Any
) -> TrainRequest:
    """Join file and options; what is left out is the server's to decide. A usage error for a file
    that is no YAML."""
    tree = {} if config is None else _read(config)
    fields = {key: tree.pop(key) for key in list(tree) if key in _REQUEST_KEYS}
    fields |= {key: value for key, value in given.items() if value is not None}
    wrong = [key for key, value in fields.items() if not isinstance(value, str)]
    if wrong:
        raise typer.BadParameter(f"{', '.join(wrong)} must be texts", param_hint="--config")
    token = fields.setdefault("token", _DEFAULT_TOKEN)
    noun = class_word or fields.pop("class", "")
    fields.pop("class", None)
    instance = fields.pop("instance_prompt", f"a photo of {token} {noun}".strip())
    if prior and noun:
        article = "an" if noun[0] in "aeiou" else "a"
        fields.setdefault("class_prompt", f"a photo of {article} {noun}")
    elif not prior:
        fields.pop("class_prompt", None)
        tree.pop("prior", None)
    if steps is not None:
        section = tree.setdefault("optimization", {})
        if isinstance(section, dict):
            section["step_count"] = steps
    if tree:
        fields["configuration_yaml"] = yaml.safe_dump(tree, sort_keys=False)
    base = fields.pop("base_model", "")
    return TrainRequest(base_model=base, instance_prompt=instance, options=fields)


def _pictures(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(each for each in path.iterdir() if _is_picture(each))
        else:
            yield path


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.is_dir()


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} is no YAML: {error}", param_hint="--config") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise typer.BadParameter(f"{path} must hold a mapping of names", param_hint="--config")
    return tree
