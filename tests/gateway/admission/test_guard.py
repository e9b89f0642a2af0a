"""The circuit breaker: how often a store that is away is asked."""

import pytest
from prometheus_client import CollectorRegistry

from services.gateway.admission.guard import GuardedStore
from services.gateway.admission.memory_store import InMemoryStore
from services.gateway.admission.store import Expired, StoreError
from services.gateway.metrics import GatewayMetrics


class SwitchedStore(InMemoryStore):
    """A store that can be away, and counts how often it is asked."""

    is_away = False
    asked = 0

    async def sweep(self, account):
        self.asked += 1
        if self.is_away:
            raise StoreError("away")
        return await super().sweep(account)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store():
    return SwitchedStore()


@pytest.fixture
def guarded(store, registry, clock):
    return GuardedStore(store, GatewayMetrics(registry), clock=clock)


async def fail(guarded, times):
    for _ in range(times):
        with pytest.raises(StoreError):
            await guarded.sweep("acme")


async def test_after_three_failures_a_store_is_asked_once_a_second(guarded, store, clock):
    store.is_away = True
    await fail(guarded, 10)
    assert store.asked == 3
    clock.now = 0.99
    await fail(guarded, 5)
    assert store.asked == 3
    for second in (1, 2, 3):
        clock.now = second
        await fail(guarded, 5)
        assert store.asked == 3 + second


async def test_one_answer_closes_the_breaker(guarded, store, clock, registry):
    def degraded():
        return registry.get_sample_value("gateway_degraded", {"dependency": "store"})

    assert degraded() == 0
    store.is_away = True
    await fail(guarded, 5)
    assert degraded() == 1
    store.is_away = False
    await fail(guarded, 1)
    clock.now = 1.0
    for _ in range(3):
        assert await guarded.sweep("acme") == Expired()
    assert degraded() == 0
    assert registry.get_sample_value("gateway_store_errors_total") == 3


async def test_failures_that_are_not_in_a_row_open_nothing(guarded, store):
    for _ in range(10):
        store.is_away = True
        await fail(guarded, 2)
        store.is_away = False
        assert await guarded.sweep("acme") == Expired()
    assert store.asked == 30


async def test_an_outage_is_logged_once(guarded, store, caplog):
    store.is_away = True
    await fail(guarded, 10)
    assert caplog.text.count("does not answer") == 1
