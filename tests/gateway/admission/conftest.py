import pytest

from tests.gateway.admission.clocks import open_store
from tests.gateway.admission.redis_server import RedisServer
from tests.gateway.fake_backend import backend


@pytest.fixture(scope="session")
def redis_server():
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "redis"])
async def store_and_clock(request, redis_server):
    store, clock = await open_store(request.param, redis_server.url)
    yield store, clock
    await store.close_store()
    await clock.close()


@pytest.fixture
def store(store_and_clock):
    return store_and_clock[0]


@pytest.fixture
def clock(store_and_clock):
    return store_and_clock[1]


@pytest.fixture
def redis_url(redis_server):
    """An emptied server."""
    redis_server.empty()
    return redis_server.url


@pytest.fixture(params=["memory", "redis"])
def any_store_url(request):
    """The address of an emptied server, or nothing for state in memory."""
    return request.getfixturevalue("redis_url") if request.param == "redis" else ""


@pytest.fixture
async def fake():
    """A backend that draws nothing."""
    async with backend() as serving:
        yield serving
