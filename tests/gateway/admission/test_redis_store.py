"""What the store on a server owes its callers, whatever the server and they do."""

import asyncio
from random import Random

import pytest

from services.gateway.admission.redis_store import RedisStore
from services.gateway.admission.store import StoreError


@pytest.fixture
async def store(redis_url):
    store = RedisStore(redis_url)
    yield store
    await store.close_store()


async def _first_account(store):
    async for account in store.accounts():
        return account
    return None


@pytest.mark.parametrize("tick_count", range(12))
async def test_a_caller_that_is_cancelled_does_not_go_on(redis_url, tick_count):
    """Wherever the command is: waiting for a connection, being sent, or waiting for the answer."""
    store = RedisStore(redis_url, timeout_s=30)
    await store.snapshot("acme")
    asked = asyncio.create_task(store.snapshot("acme"))
    for _ in range(tick_count):
        await asyncio.sleep(0)
    was_answered = asked.done()
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled() or was_answered
    assert not (await store.snapshot("acme")).is_known  # and nobody reads its answer
    await store.close_store()


async def test_callers_that_leave_a_crowd_take_no_connection_with_them(redis_url):
    store, random = RedisStore(redis_url, timeout_s=30), Random(0)
    loop = asyncio.get_running_loop()
    for _ in range(10):
        crowd = [asyncio.create_task(store.snapshot("acme")) for _ in range(150)]
        for asked in random.sample(crowd, 75):
            loop.call_later(random.uniform(0, 0.05), asked.cancel)
        await asyncio.wait(crowd)
    async with asyncio.timeout(30):
        await asyncio.gather(*(store.snapshot("acme") for _ in range(64)))
    assert not store._redis.connection_pool._in_use_connections
    await store.close_store()


@pytest.mark.parametrize("ask", [lambda store: store.snapshot("acme"), _first_account])
async def test_a_server_that_does_not_answer_is_an_error_soon(redis_server, store, ask):
    await ask(store)
    redis_server.freeze()
    try:
        with pytest.raises(StoreError, match=r"no answer in 0\.25 s"):
            async with asyncio.timeout(20):
                await ask(store)
    finally:
        redis_server.thaw()


async def test_a_server_that_is_away_is_an_error(redis_server, store):
    redis_server.kill()
    try:
        with pytest.raises(StoreError, match="ConnectionError"):
            await store.snapshot("acme")
    finally:
        redis_server.restart()
