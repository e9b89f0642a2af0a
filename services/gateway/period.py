"""Accounting periods: calendar months in UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

_PATTERN = re.compile(r"(\d{4})-(\d{2})", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Period:
    """A month. Written as `2026-11`. Raises ValueError for a month that no calendar has."""

    year: int
    month: int

    def __post_init__(self) -> None:
        """Raise ValueError unless both a start and an end exist."""
        if not (1 <= self.year < 9999 and 1 <= self.month <= 12):
            raise ValueError(f"there is no month {self.year}-{self.month}")

    @classmethod
    def containing(cls, moment: datetime) -> Self:
        """The month of a moment. Raises ValueError when it has no time zone."""
        if moment.tzinfo is None:
            raise ValueError("a datetime without a time zone is not a point in time")
        moment = moment.astimezone(UTC)
        return cls(year=moment.year, month=moment.month)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `2026-11`. Raises ValueError."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"a month is written like 2026-11, got {text!r:.40}")
        return cls(year=int(match[1]), month=int(match[2]))

    @property
    def start(self) -> datetime:
        """Its first moment."""
        return datetime(self.year, self.month, 1, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """The first moment of the next one."""
        years, month = divmod(self.month, 12)
        return datetime(self.year + years, month + 1, 1, tzinfo=UTC)

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"
