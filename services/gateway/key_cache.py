"""A memory of look-ups in front of the key store.

Called by the authenticator. A found key is remembered only for as long as the change counter
vouches that no key was shut out since it was read (`services.gateway.changes`); unknown digests are
forgotten by time, as a key may be created under them. The two are remembered apart, so that a flood
of guesses cannot push real keys out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from services.gateway.changes import ChangeFeed
from services.gateway.key_store import KeyRecord

_FOUND_TTL_S = 60.0
_UNKNOWN_TTL_S = 2.0

_Value = TypeVar("_Value")


class KeyLookup(Protocol):
    """What the cache needs of a key store."""

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        """The key with this digest, or None."""


class KeyCache:
    """Remembers at most `capacity` found keys and as many unknown digests."""

    def __init__(
        self,
        store: KeyLookup,
        changes: ChangeFeed,
        *,
        capacity: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._changes = changes
        self._clock = clock
        self._found = _Memory[tuple[KeyRecord, int]](_FOUND_TTL_S, capacity)
        self._unknown = _Memory[int](_UNKNOWN_TTL_S, capacity)

    def recall(self, digest: bytes) -> KeyRecord | None:
        """The key with this digest if it is remembered and nothing changed since it was read."""
        remembered = self._found.get(digest, self._clock())
        if remembered is None or remembered[1] != self._changes.generation():
            return None
        return remembered[0]

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        """The key with this digest, or None; errors as the store raises them.

        A key that another replica shut out is seen as it is now, within two seconds.
        """
        remembered = self.recall(digest)
        if remembered is not None:
            return remembered
        now = self._clock()
        generation = self._changes.generation()
        if self._unknown.get(digest, now) is not None:
            return None
        record = await self._store.find_key(digest)
        if record is None:
            self._unknown.put(digest, 0, now)
        elif generation is not None:
            # Of before the read: a change that came in between makes the entry worthless.
            self._found.put(digest, (record, generation), now)
        return record


class _Memory(Generic[_Value]):
    """Values by digest with the time they were read; the oldest goes when it is full."""

    def __init__(self, ttl_s: float, capacity: int) -> None:
        self._ttl_s = ttl_s
        self._capacity = capacity
        self._entries: dict[bytes, tuple[_Value, float]] = {}

    def get(self, digest: bytes, now: float) -> _Value | None:
        entry = self._entries.get(digest)
        if entry is None or now - entry[1] >= self._ttl_s:
            return None
        return entry[0]

    def put(self, digest: bytes, value: _Value, read_at: float) -> None:
        self._entries.pop(digest, None)
        while len(self._entries) >= self._capacity:
            del self._entries[next(iter(self._entries))]
        self._entries[digest] = (value, read_at)
