"""A short memory of look-ups in front of the key store.

Called by the authenticator. Found and unknown digests are remembered apart, so that a flood of
guesses cannot push real keys out. A revocation made through this object counts at once; one made by
another process counts when the memory has passed, after `ttl_s` at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from services.gateway.key_store import KeyRecord

MAX_TTL_S = 2.0

_Value = TypeVar("_Value")


class KeyLookup(Protocol):
    """What the cache needs of a key store."""

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        """The key with this digest, or None."""

    async def revoke_key(self, key_id: str) -> KeyRecord:
        """Revokes a key for good."""


class KeyCache:
    """Remembers look-ups for `ttl_s` seconds, at most `capacity` found and as many unknown ones."""

    def __init__(
        self,
        store: KeyLookup,
        *,
        ttl_s: float = MAX_TTL_S,
        capacity: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= ttl_s <= MAX_TTL_S:
            raise ValueError(f"a key may be remembered for {MAX_TTL_S} s at most, not {ttl_s}")
        self._store = store
        self._clock = clock
        self._found = _Memory[KeyRecord](ttl_s, capacity)
        self._unknown = _Memory[None](ttl_s, capacity)
        self._revocation_count = 0

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        """The key with this digest as it was in the store at most `ttl_s` ago, or None."""
        now = self._clock()
        found = self._found.get(digest, now)
        if found is not None:
            return found[0]
        if self._unknown.get(digest, now) is not None:
            return None
        return await self._look_up(digest, now)

    async def revoke_key(self, key_id: str) -> KeyRecord:
        """Revokes in the store and forgets the key here. Errors as the store raises them."""
        revoked = await self._store.revoke_key(key_id)
        self._revocation_count += 1
        self._found.discard(revoked.digest)
        return revoked

    async def _look_up(self, digest: bytes, started: float) -> KeyRecord | None:
        revocation_count = self._revocation_count
        record = await self._store.find_key(digest)
        if revocation_count != self._revocation_count:
            return record  # may have been read before the revocation: not to be remembered
        if record is None:
            self._unknown.put(digest, None, started)
        else:
            self._found.put(digest, record, started)
        return record


class _Memory(Generic[_Value]):
    """Values by digest with the time they were read; the oldest goes when it is full."""

    def __init__(self, ttl_s: float, capacity: int) -> None:
        self._ttl_s = ttl_s
        self._capacity = capacity
        self._entries: dict[bytes, tuple[_Value, float]] = {}

    def get(self, digest: bytes, now: float) -> tuple[_Value] | None:
        entry = self._entries.get(digest)
        if entry is None or now - entry[1] >= self._ttl_s:
            return None
        return (entry[0],)

    def put(self, digest: bytes, value: _Value, read_at: float) -> None:
        self.discard(digest)
        while len(self._entries) >= self._capacity:
            del self._entries[next(iter(self._entries))]
        self._entries[digest] = (value, read_at)

    def discard(self, digest: bytes) -> None:
        self._entries.pop(digest, None)
