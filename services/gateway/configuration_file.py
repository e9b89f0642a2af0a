"""YAML files that a platform team writes: read strictly, followed while the gateway runs.

Used for the tiers and the prices. Every mistake is reported at once; a key that is there twice is a
mistake too. A file that has got a mistake changes nothing: the last good one stays, the failure is
logged and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

POLL_INTERVAL_S = 1.0

_Content = TypeVar("_Content", bound=BaseModel)
_Value = TypeVar("_Value")

_log = logging.getLogger(__name__)


class ConfigurationFileError(ValueError):
    """The file cannot be read or has mistakes; the message lists them all, a line each."""


class FollowedFile(Generic[_Value]):
    """What `read` makes of the file at `path`, or of None where there is none; `follow` keeps up.

    `read` raises ConfigurationFileError: at the start it passes, later `on_failure` is called, once
    for each version of the file that is refused. `name` is for the log.
    """

    def __init__(
        self,
        name: str,
        path: Path | None,
        read: Callable[[Path | None], _Value],
        *,
        on_failure: Callable[[], None] = lambda: None,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self._name = name
        self._path = path
        self._read = read
        self._on_failure = on_failure
        self._poll_interval_s = poll_interval_s
        self._version = None if path is None else _version(path)
        self.current = read(path)
        """As the last good version of the file has it."""

    async def follow(self) -> None:
        """Looks at the file now and then, until cancelled; returns at once when there is none."""
        while self._path is not None:
            await asyncio.sleep(self._poll_interval_s)
            await self._look(self._path)

    async def _look(self, path: Path) -> None:
        version = await asyncio.to_thread(_version, path)
        if version == self._version:
            return
        self._version = version
        extra = {"file": self._name, "path": str(path)}
        try:
            self.current = await asyncio.to_thread(self._read, path)
        except ConfigurationFileError as error:
            self._on_failure()
            why = extra | {"why": str(error)}
            _log.error("a file was not reloaded, the last good version stays", extra=why)
            return
        _log.info("a file was reloaded", extra=extra)


def read_configuration(path: Path, content: type[_Content]) -> _Content:
    """What is in the file at `path`. Raises ConfigurationFileError."""
    try:
        return content.model_validate(yaml.load(_read_regular(path), Loader=_StrictLoader))
    except ValidationError as error:
        mistakes = "\n".join(f"  {_mistake(detail)}" for detail in error.errors())
        raise ConfigurationFileError(f"mistakes in {path}:\n{mistakes}") from None
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigurationFileError(f"{path} cannot be read: {error}") from error


def _read_regular(path: Path) -> bytes:
    """What is in a file that has an end: a pipe would let the reader wait, perhaps for ever."""
    if not path.is_file() and path.exists():
        raise OSError("it is no regular file")
    return path.read_bytes()


def _version(path: Path) -> tuple[int, int, int] | None:
    """Tells one version of a file from the next, also where it is a link that is swapped."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


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
