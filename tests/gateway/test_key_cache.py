import asyncio
import dataclasses
from datetime import UTC, datetime

import pytest

from services.gateway.key_cache import KeyCache
from services.gateway.key_store import KeyRecord

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class CountedStore:
    """A key store in memory that counts look-ups."""

    def __init__(self):
        self.records = {}
        self.lookup_count = 0
        self.held = None

    def add(self, digest, key_id="k1"):
        self.records[digest] = KeyRecord(
            key_id=key_id,
            account="acme",
            name="n",
            digest=digest,
            created=NOW,
            revoked_at=None,
            expires_at=None,
        )

    async def find_key(self, digest):
        self.lookup_count += 1
        record = self.records.get(digest)
        if self.held is not None:
            await self.held.wait()
        return record

    async def revoke_key(self, key_id):
        for digest, record in self.records.items():
            if record.key_id == key_id:
                self.records[digest] = dataclasses.replace(record, revoked_at=NOW)
                return self.records[digest]
        raise AssertionError(key_id)


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


async def test_found_and_unknown_keys_are_looked_up_once_while_fresh(store, clock):
    store.add(b"known")
    cache = KeyCache(store, clock=clock)
    for _ in range(3):
        assert (await cache.find_key(b"known")).key_id == "k1"
        assert await cache.find_key(b"unknown") is None
    assert store.lookup_count == 2


async def test_a_change_by_another_process_is_seen_within_two_seconds(store, clock):
    store.add(b"known")
    cache = KeyCache(store, clock=clock)
    await cache.find_key(b"known")
    assert await cache.find_key(b"late") is None
    await store.revoke_key("k1")
    store.add(b"late", "k2")
    clock.now += 1.99
    assert (await cache.find_key(b"known")).revoked_at is None
    clock.now += 0.01
    assert (await cache.find_key(b"known")).revoked_at == NOW
    assert (await cache.find_key(b"late")).key_id == "k2"


async def test_a_longer_memory_than_two_seconds_is_refused(store):
    with pytest.raises(ValueError, match=r"2\.0 s at most"):
        KeyCache(store, ttl_s=2.1)


async def test_a_revocation_in_this_process_counts_at_once(store, clock):
    store.add(b"known")
    cache = KeyCache(store, clock=clock)
    await cache.find_key(b"known")
    await cache.revoke_key("k1")
    assert (await cache.find_key(b"known")).revoked_at == NOW


async def test_a_look_up_that_overtakes_a_revocation_is_not_remembered(store, clock):
    store.add(b"known")
    store.held = asyncio.Event()
    cache = KeyCache(store, clock=clock)
    early = asyncio.create_task(cache.find_key(b"known"))
    await asyncio.sleep(0)
    await cache.revoke_key("k1")
    store.held.set()
    assert (await early).revoked_at is None
    assert (await cache.find_key(b"known")).revoked_at == NOW


async def test_a_flood_of_guesses_neither_grows_the_memory_nor_pushes_keys_out(store, clock):
    store.add(b"known")
    cache = KeyCache(store, capacity=10, clock=clock)
    await cache.find_key(b"known")
    for number in range(1000):
        await cache.find_key(str(number).encode())
    lookup_count = store.lookup_count
    await cache.find_key(b"known")
    await cache.find_key(b"999")
    assert store.lookup_count == lookup_count
    await cache.find_key(b"0")
    assert store.lookup_count == lookup_count + 1


async def test_the_memory_of_found_keys_is_bounded(store, clock):
    for number in range(20):
        store.add(str(number).encode(), f"k{number}")
    cache = KeyCache(store, capacity=10, clock=clock)
    for number in range(20):
        await cache.find_key(str(number).encode())
    await cache.find_key(b"19")
    assert store.lookup_count == 20
    await cache.find_key(b"9")
    assert store.lookup_count == 21
