"""When keys were last used: noted in memory by the authenticator, written down in bulk.

A use in the last seconds before a crash may be lost; nothing is decided by it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from services.storage.database import explain

_INTERVAL_S = 15.0
_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class UseStore(Protocol):
    """Where uses are written down."""

    async def note_uses(self, uses: Mapping[str, datetime]) -> None:
        """Writes down when keys, by id, were last used."""


class KeyUses:
    """The uses since they were last written down. `run` writes now and then, until cancelled."""

    def __init__(self, store: UseStore, *, interval_s: float = _INTERVAL_S) -> None:
        self._store = store
        self._interval_s = interval_s
        self._uses: dict[str, datetime] = {}

    def note(self, key_id: str, at: datetime) -> None:
        """Remembers a use."""
        self._uses[key_id] = at

    async def run(self) -> None:
        """Writes what was noted every `interval_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.flush()

    async def flush(self) -> None:
        """Writes what was noted; what cannot be written is kept for the next time."""
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._store.note_uses(uses)
        except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
            self._uses = uses | self._uses
            _log.warning("uses of keys not written", extra={"why": explain(error)})
