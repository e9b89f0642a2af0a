"""The tiers of now: the built-in ones and those of a YAML file, followed while the gateway runs.

A file with a mistake changes nothing: the last good one stays, the failure is logged and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from services.gateway.configuration_file import ConfigurationFileError
from services.gateway.tiers.file import read_tiers
from services.gateway.tiers.tier import BUILT_IN_TIERS, Tier

_POLL_INTERVAL_S = 1.0

_log = logging.getLogger(__name__)


class UnknownTierError(LookupError):
    """No tier has this name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no tier {name!r}; there is: {', '.join(known)}")
        self.name = name


class TierCatalog:
    """The tiers of now. `follow` keeps up with the file until cancelled.

    Raises ConfigurationFileError, which lists every mistake, when the file is bad at the start.
    `on_failure` is called for each later version of the file that is refused.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        on_failure: Callable[[], None] = lambda: None,
        poll_interval_s: float = _POLL_INTERVAL_S,
    ) -> None:
        self._path = path
        self._on_failure = on_failure
        self._poll_interval_s = poll_interval_s
        self._version = None if path is None else _version(path)
        self._tiers = BUILT_IN_TIERS if path is None else _load(path)

    def get(self, name: str) -> Tier:
        """The tier with this name as the file has it now. Raises UnknownTierError."""
        try:
            return self._tiers[name]
        except KeyError:
            raise UnknownTierError(name, [tier.name for tier in self.list_tiers()]) from None

    def list_tiers(self) -> Sequence[Tier]:
        """All tiers, by name."""
        return [self._tiers[name] for name in sorted(self._tiers)]

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
        try:
            self._tiers = await asyncio.to_thread(_load, path)
        except ConfigurationFileError as error:
            self._on_failure()
            _log.error("tiers not reloaded, the last good ones stay", extra={"why": str(error)})
            return
        _log.info("tiers reloaded", extra={"path": str(path), "tiers": sorted(self._tiers)})


def _load(path: Path) -> Mapping[str, Tier]:
    return MappingProxyType({**BUILT_IN_TIERS, **read_tiers(path)})


def _version(path: Path) -> tuple[int, int, int] | None:
    """Tells one version of a file from the next, also where it is a link that is swapped."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
