"""The change counter: how every replica hears of a revocation within two seconds.

Whatever may shut a key out (revocation, rotation, suspension, another tier) counts up a number in
the database, in the same transaction. Each gateway polls the number; `KeyCache` trusts what it
remembers only while the number is known to be the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.gateway.tables import changes
from services.storage.database import explain

POLL_INTERVAL_S = 0.5
MAX_AGE_S = 1.5
"""How old a look at the counter may be before nothing remembered counts any more."""

_KEYS = changes.c.name == "keys"

_log = logging.getLogger(__name__)


async def count_change(connection: AsyncConnection) -> None:
    """Counts a change in the transaction of `connection`."""
    await connection.execute(update(changes).where(_KEYS).values(count=changes.c.count + 1))


async def read_counter(engine: AsyncEngine) -> int:
    """The number of changes so far."""
    async with engine.connect() as connection:
        return int((await connection.execute(select(changes.c.count).where(_KEYS))).scalar_one())


class ChangeFeed(Protocol):
    """What the key cache asks."""

    def generation(self) -> int | None:
        """The same number for as long as nothing changed; None when that is not known."""


class ChangeCounter:
    """Polls the counter behind `engine`; `run` does so until cancelled.

    A generation is vouched for by a look at the counter that began at most `max_age_s` ago. With a
    poll that hangs or fails, the database being away, that soon becomes None.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        interval_s: float = POLL_INTERVAL_S,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._interval_s = interval_s
        self._max_age_s = max_age_s
        self._clock = clock
        self._generation = -1
        self._looked_at: float | None = None

    def generation(self) -> int | None:
        """The count of the last look, or None when that look is too old."""
        if self._looked_at is None or self._clock() - self._looked_at >= self._max_age_s:
            return None
        return self._generation

    async def look(self) -> None:
        """Reads the counter once. Raises SQLAlchemyError or OSError."""
        started = self._clock()
        self._generation = await read_counter(self._engine)
        self._looked_at = started

    async def note_own(self) -> None:
        """Looks at once after a change that was made here, so that it counts here at once.

        If the look fails, the change counts here as soon as everywhere.
        """
        with suppress(SQLAlchemyError, OSError):  # TimeoutError is an OSError
            async with asyncio.timeout(self._max_age_s):
                await self.look()

    async def run(self) -> None:
        """Polls until cancelled; a failed look is logged once and tried again."""
        is_failing = False
        while True:
            try:
                async with asyncio.timeout(self._max_age_s):
                    await self.look()
                is_failing = False
            except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
                if not is_failing:
                    _log.warning("changes of keys unknown", extra={"why": explain(error)})
                is_failing = True
            await asyncio.sleep(self._interval_s)
