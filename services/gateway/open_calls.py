"""The calls that are open: one whose key is shut out ends as a new call would be refused.

Authentication notes each call; `run` looks at their keys several times a second, in memory unless a
key may have changed. With the change counter (`services.gateway.changes`) a stream therefore ends
within two seconds of a revocation on any replica. While the database is away nobody is shut out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy.exc import SQLAlchemyError

from services.gateway.authentication import KeyFinder, find_refusal
from services.gateway.changes import MAX_AGE_S, ChangeFeed
from services.runtime.errors import LimnerError

LOOK_INTERVAL_S = 0.25

EndCall: TypeAlias = Callable[["asyncio.Task[Any]", LimnerError], None]
"""Ends the call that a task serves with an error."""


class OpenCalls:
    """Knows the key of every open call. `run` ends those whose key is shut out, until cancelled."""

    def __init__(
        self, keys: KeyFinder, changes: ChangeFeed, *, interval_s: float = LOOK_INTERVAL_S
    ) -> None:
        self._keys = keys
        self._changes = changes
        self._interval_s = interval_s
        self._digests: WeakKeyDictionary[asyncio.Task[Any], bytes] = WeakKeyDictionary()

    def note(self, digest: bytes) -> None:
        """Remembers the key of the call that the current task serves, for as long as it lasts."""
        task = asyncio.current_task()
        assert task is not None
        self._digests[task] = digest

    async def run(self, end_call: EndCall) -> None:
        """Looks now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            for digest in set(self._digests.values()):
                refusal = await self._refusal(digest)
                if refusal is not None:
                    self._end(digest, refusal, end_call)

    def _end(self, digest: bytes, refusal: LimnerError, end_call: EndCall) -> None:
        for task, theirs in list(self._digests.items()):
            if theirs == digest:
                del self._digests[task]
                end_call(task, refusal)

    async def _refusal(self, digest: bytes) -> LimnerError | None:
        """What a new call with this key would hear; None while that is not known."""
        record = self._keys.recall(digest)
        if record is None and self._changes.generation() is not None:
            try:
                async with asyncio.timeout(MAX_AGE_S):
                    record = await self._keys.find_key(digest)
            except (SQLAlchemyError, OSError):  # TimeoutError is an OSError
                return None  # asked again soon; the counter logs that the database is away
        return None if record is None else find_refusal(record, datetime.now(UTC))
