import asyncio
import dataclasses
from datetime import UTC, datetime

import pytest

from services.gateway.key_cache import KeyCache
from services.gateway.key_store import KeyRecord
from services.gateway.scopes import DEFAULT_SCOPES

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class CountedStore:
    """A key store in memory that counts look-ups, and its change feed."""

    def __init__(self):
        self.records = {}
        self.lookup_count = 0
        self.held = None
        self.changes = 0
        self.is_known = True

    def add(self, digest, key_id="k1"):
        self.records[digest] = KeyRecord(
            key_id=key_id,
            account="acme",
            tier="free",
            suspended_at=None,
            name="n",
            digest=digest,
            scopes=DEFAULT_SCOPES,
            created=NOW,
        )

    def revoke(self, digest):
        self.records[digest] = dataclasses.replace(self.records[digest], revoked_at=NOW)

    def generation(self):
        return self.changes if self.is_known else None

    async def find_key(self, digest):
        self.lookup_count += 1
        record = self.records.get(digest)
        if self.held is not None:
            await self.held.wait()
        return record


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def store():
    return CountedStore()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(store, clock):
    return KeyCache(store, store, capacity=10, clock=clock)


async def test_found_and_unknown_keys_are_looked_up_once_while_nothing_changes(store, cache):
    store.add(b"known")
    for _ in range(3):
        assert (await cache.find_key(b"known")).key_id == "k1"
        assert await cache.find_key(b"unknown") is None
    assert store.lookup_count == 2


async def test_after_a_change_every_key_is_read_anew(store, cache):
    store.add(b"known")
    await cache.find_key(b"known")
    store.revoke(b"known")
    assert (await cache.find_key(b"known")).revoked_at is None
    store.changes += 1
    assert (await cache.find_key(b"known")).revoked_at == NOW


async def test_nothing_remembered_counts_while_changes_are_unknown(store, cache):
    store.add(b"known")
    await cache.find_key(b"known")
    store.is_known = False
    store.revoke(b"known")
    assert (await cache.find_key(b"known")).revoked_at == NOW
    assert (await cache.find_key(b"known")).revoked_at == NOW
    assert store.lookup_count == 3


async def test_a_look_up_that_overtakes_a_change_is_not_remembered(store, cache):
    store.add(b"known")
    store.held = asyncio.Event()
    early = asyncio.create_task(cache.find_key(b"known"))
    await asyncio.sleep(0)
    store.revoke(b"known")
    store.changes += 1
    store.held.set()
    assert (await early).revoked_at is None
    assert (await cache.find_key(b"known")).revoked_at == NOW


async def test_a_new_key_opens_within_two_seconds_of_being_guessed(store, cache, clock):
    assert await cache.find_key(b"late") is None
    store.add(b"late", "k2")
    clock.now += 1.99
    assert await cache.find_key(b"late") is None
    clock.now += 0.01
    assert (await cache.find_key(b"late")).key_id == "k2"


async def test_a_key_is_read_again_after_a_minute_even_if_nothing_changed(store, cache, clock):
    store.add(b"known")
    await cache.find_key(b"known")
    clock.now += 60
    await cache.find_key(b"known")
    assert store.lookup_count == 2


async def test_a_flood_of_guesses_neither_grows_the_memory_nor_pushes_keys_out(store, cache):
    store.add(b"known")
    await cache.find_key(b"known")
    for number in range(1000):
        await cache.find_key(str(number).encode())
    lookup_count = store.lookup_count
    await cache.find_key(b"known")
    await cache.find_key(b"999")
    assert store.lookup_count == lookup_count
    await cache.find_key(b"0")
    assert store.lookup_count == lookup_count + 1


async def test_the_memory_of_found_keys_is_bounded(store, cache):
    for number in range(20):
        store.add(str(number).encode(), f"k{number}")
    for number in range(20):
        await cache.find_key(str(number).encode())
    await cache.find_key(b"19")
    assert store.lookup_count == 20
    await cache.find_key(b"9")
    assert store.lookup_count == 21
