"""The tiers of now: the built-in ones and those of a YAML file, followed while the gateway runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from services.gateway.configuration_file import POLL_INTERVAL_S, FollowedFile
from services.gateway.tiers.file import read_tiers
from services.gateway.tiers.tier import BUILT_IN_TIERS, Tier


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
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self._file = FollowedFile(
            "tiers", path, _load, on_failure=on_failure, poll_interval_s=poll_interval_s
        )

    def get(self, name: str) -> Tier:
        """The tier with this name as the file has it now. Raises UnknownTierError."""
        try:
            return self._file.current[name]
        except KeyError:
            raise UnknownTierError(name, [tier.name for tier in self.list_tiers()]) from None

    def list_tiers(self) -> Sequence[Tier]:
        """All tiers, by name."""
        tiers = self._file.current
        return [tiers[name] for name in sorted(tiers)]

    async def follow(self) -> None:
        """Keeps up with the file, until cancelled; returns at once when there is none."""
        await self._file.follow()


def _load(path: Path | None) -> Mapping[str, Tier]:
    if path is None:
        return BUILT_IN_TIERS
    return MappingProxyType({**BUILT_IN_TIERS, **read_tiers(path)})
