"""Stores on a clock that the test sets; for Redis it is a key in the server."""

from __future__ import annotations

from datetime import UTC, datetime

import redis.asyncio

from services.gateway.admission.memory_store import InMemoryStore
from services.gateway.admission.redis_store import RedisStore
from services.gateway.admission.store import AdmissionStore

MID_NOVEMBER_MS = int(datetime(2026, 11, 15, tzinfo=UTC).timestamp()) * 1000

_TEST_CLOCK = "local now = tonumber(redis.call('GET', 'test-clock'))"


class Clock:
    """The store's time in milliseconds."""

    def __init__(self, now_ms: int = MID_NOVEMBER_MS) -> None:
        self.now_ms = now_ms

    async def set(self, now_ms: int) -> None:
        self.now_ms = now_ms

    async def advance(self, ms: int) -> None:
        """Lets time pass, or go back."""
        await self.set(self.now_ms + ms)

    async def close(self) -> None:
        """Nothing to let go of."""


class ServerClock(Clock):
    """Time as the scripts of `redis_store` see it in tests."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._redis = redis.asyncio.Redis.from_url(url)

    async def set(self, now_ms: int) -> None:
        self.now_ms = now_ms
        await self._redis.set("test-clock", now_ms)

    async def close(self) -> None:
        await self._redis.aclose()


async def open_store(kind: str, url: str) -> tuple[AdmissionStore, Clock]:
    """An empty store of that kind with its clock."""
    if kind == "memory":
        clock = Clock()
        return InMemoryStore(lambda: clock.now_ms), clock
    server_clock = ServerClock(url)
    await server_clock._redis.flushall()
    await server_clock.set(MID_NOVEMBER_MS)
    # No test waits for a timeout here; a busy machine must not make one.
    return RedisStore(url, timeout_s=30, clock=_TEST_CLOCK), server_clock
