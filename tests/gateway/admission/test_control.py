"""Leases that live and end, balances that are put right, and what happens during outages."""

import asyncio
from dataclasses import replace

import pytest

from services.gateway.admission import Admitted, Delivery, LimitReachedError
from services.gateway.admission.held_lease import LOOK_INTERVAL_S
from services.gateway.admission.memory_store import InMemoryStore
from services.gateway.admission.redis_store import RedisStore
from services.runtime.errors import UnavailableError
from tests.gateway.admission.controls import (
    FREE_OF_BALANCES,
    PRICE,
    WIDE,
    MemoryLedger,
    request,
    running,
)
from tests.gateway.waiting import until


@pytest.fixture
def ledger():
    return MemoryLedger()


def new_store(url):
    """The store in question; patient, as a busy machine is no outage."""
    return RedisStore(url, timeout_s=30) if url else InMemoryStore()


async def usage(store):
    return (await store.snapshot("acme")).usage


async def agrees(store, ledger):
    """Whether the store's balance is that of the ledger, and nothing runs."""
    found = await usage(store)
    return (found.charged_millicredits, found.running_count, found.held_millicredits) == (
        sum(ledger.entries.values()),
        0,
        0,
    )


async def test_a_heartbeat_keeps_a_lease_for_as_long_as_its_stream(any_store_url, ledger):
    async with running(new_store(any_store_url), ledger, lease_s=0.5) as it:
        lease = await it.control.admit(request())
        for _ in range(15):
            await asyncio.sleep(0.1)
            await it.store.sweep("acme")
            assert (await usage(it.store)).held_millicredits == PRICE
        await lease.charge(0)
        await lease.settle(Delivery(artifact_count=1))
        assert await agrees(it.store, ledger)
        assert it.metric("gateway_leases_expired_total") == 0


@pytest.mark.parametrize("wait_count", range(0, 25, 3))
async def test_a_caller_that_leaves_at_any_moment_leaves_no_lease(
    any_store_url, ledger, wait_count
):
    async def draw(control):
        async with Admitted(control, request()) as drawing:
            await drawing.charge(0)

    async with running(new_store(any_store_url), ledger) as it:
        task = asyncio.create_task(draw(it.control))
        for _ in range(wait_count):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await it.control.reconcile("acme")
        assert await agrees(it.store, ledger)


async def test_the_leases_of_a_gateway_that_died_expire_and_are_refunded(redis_url, ledger):
    """It charged one of three pictures before it died."""
    async with running(new_store(redis_url), ledger, lease_s=1) as survivor:
        async with running(new_store(redis_url), ledger, lease_s=1) as dying:
            lease = await dying.control.admit(request(pictures=3))
            await lease.charge(0)
        # Nobody settles or renews now.
        assert (await usage(survivor.store)).held_millicredits == 3 * PRICE
        await until(lambda: survivor.metric("gateway_leases_expired_total") == 1)
        assert survivor.metric("gateway_credits_total", event="expired") == 3 * PRICE / 1000
        await survivor.control.reconcile("acme")
        assert await agrees(survivor.store, ledger)
        assert (await usage(survivor.store)).charged_millicredits == PRICE


async def test_what_others_charged_is_known_at_the_first_request(any_store_url, ledger):
    ledger.entries["acme", "earlier", "artifact-0"] = 999_995
    async with running(new_store(any_store_url), ledger) as it:
        with pytest.raises(LimitReachedError) as refused:
            await it.control.admit(request())
        assert refused.value.reason == "CREDITS_EXHAUSTED"


async def test_a_grant_counts_once_the_account_is_reconciled(any_store_url, ledger):
    ledger.entries["acme", "earlier", "artifact-0"] = 1_000_000
    async with running(new_store(any_store_url), ledger) as it:
        with pytest.raises(LimitReachedError):
            await it.control.admit(request())
        ledger.granted["acme"] = PRICE
        await it.control.reconcile("acme")
        lease = await it.control.admit(request())
        await lease.refund()
        assert dict(await it.control.describe("acme", WIDE))["x-ratelimit-remaining-credits"] == (
            "0.01"
        )


async def test_an_emptied_redis_is_rebuilt_while_streams_run(redis_url, redis_server, ledger):
    async with running(new_store(redis_url), ledger, lease_s=0.6) as it:
        done = await it.control.admit(request("done"))
        await done.charge(0)
        await done.settle(Delivery(artifact_count=1))
        stream = await it.control.admit(request("stream", pictures=3))
        await stream.charge(0)
        redis_server.empty()
        other = await it.control.admit(request("other"))  # finds the balance unknown

        async def is_restored():
            return (await it.store.snapshot("acme")).running == {"stream:0", "other:0"}

        await until(is_restored)
        await stream.charge(1)
        await stream.settle(Delivery(artifact_count=2))
        await other.refund()
        await until(lambda: agrees(it.store, ledger))
        assert sum(ledger.entries.values()) == 3 * PRICE


async def test_while_the_ledger_can_only_be_read_nothing_is_drawn(any_store_url, ledger):
    """As on a full disk: the first request finds out, those after it are not let in."""
    async with running(new_store(any_store_url), ledger) as it:
        await (await it.control.admit(request("a"))).refund()
        ledger.is_full = True
        lease = await it.control.admit(request("b"))
        with pytest.raises(UnavailableError):
            await lease.charge(0)
        await lease.refund()
        for number in range(10):
            with pytest.raises(UnavailableError):
                await it.control.admit(request(f"c{number}"))
        assert 1 <= ledger.probe_count < 10  # the circuit breaker asks once a second
        assert it.metric("gateway_degraded", dependency="ledger") == 1
        ledger.is_full = False

        async def is_back():
            try:
                await (await it.control.admit(request("d"))).refund()
            except UnavailableError:
                return False
            return True

        await until(is_back)
        assert it.metric("gateway_degraded", dependency="ledger") == 0
        await until(lambda: agrees(it.store, ledger))


async def test_what_runs_here_is_counted_before_an_emptied_redis_decides_again(
    redis_url, redis_server, ledger
):
    """No heartbeat comes to its help: the next is a quarter of an hour away."""
    one = replace(WIDE, concurrent_requests=1)
    async with running(new_store(redis_url), ledger, lease_s=3000) as it:
        stream = await it.control.admit(request("stream", tier=one))
        redis_server.empty()
        with pytest.raises(LimitReachedError) as refused:
            await it.control.admit(request("other", tier=one))
        assert refused.value.reason == "CONCURRENCY_LIMITED"
        await stream.refund()
        await (await it.control.admit(request("other", tier=one))).refund()


async def test_what_runs_elsewhere_is_counted_again_within_about_a_second_of_an_emptied_redis(
    redis_url, redis_server, ledger
):
    """Of two gateways neither meets a request, and no heartbeat is near."""
    assert LOOK_INTERVAL_S <= 1
    async with (
        running(new_store(redis_url), ledger, lease_s=3000) as one,
        running(new_store(redis_url), ledger, lease_s=3000) as other,
    ):
        leases = [await one.control.admit(request(f"a{number}")) for number in range(3)]
        leases.append(await other.control.admit(request("b")))
        redis_server.empty()

        async def is_restored():
            return (await one.store.snapshot("acme")).running == {"a0:0", "a1:0", "a2:0", "b:0"}

        await until(is_restored)
        assert (await usage(one.store)).held_millicredits == 4 * PRICE
        for lease in leases:
            await lease.refund()


async def test_a_restarted_redis_knows_its_scripts_again(redis_url, redis_server, ledger):
    async with running(new_store(redis_url), ledger) as it:
        await (await it.control.admit(request("a"))).refund()
        redis_server.restart()
        lease = None

        async def is_admitted():
            nonlocal lease
            try:
                lease = await it.control.admit(request("b"))
            except UnavailableError:
                return False
            return True

        await until(is_admitted)
        await lease.charge(0)
        await lease.settle(Delivery(artifact_count=1))
        assert await agrees(it.store, ledger)


async def test_an_end_that_a_frozen_redis_missed_is_told_later(redis_url, redis_server, ledger):
    async with running(RedisStore(redis_url), ledger, lease_s=60) as it:
        lease = await _admitted(it)
        redis_server.freeze()
        await lease.charge(0)
        await lease.settle(Delivery(artifact_count=1))
        redis_server.thaw()
        observer = new_store(redis_url)
        await until(lambda: agrees(observer, ledger))
        await observer.close_store()
        assert it.metric("gateway_credits_total", event="settled") <= PRICE / 1000


async def _admitted(it):
    """A lease in the store, however busy the machine is."""
    lease = None

    async def is_admitted():
        nonlocal lease
        try:
            lease = await it.control.admit(request())
        except UnavailableError:
            return False
        return True

    await until(is_admitted)
    return lease


async def test_credits_fail_closed_while_redis_is_away_and_never_as_exhausted(
    redis_url, redis_server, ledger
):
    async with running(RedisStore(redis_url), ledger) as it:
        redis_server.kill()
        for _ in range(5):
            with pytest.raises(UnavailableError) as refused:
                await it.control.admit(request())
            assert refused.value.reason == "NOT_READY"
        assert await it.control.describe("acme", WIDE) == ()
        labels = {"tier": "wide", "service": "generation", "decision": "degraded"}
        assert it.metric("gateway_admissions_total", **labels) == 5
        redis_server.restart()
        await (await _admitted(it)).refund()
        assert it.metric("gateway_degraded", dependency="store") == 0


async def test_rates_fall_back_to_a_divided_limit_while_redis_is_away(
    redis_url, redis_server, ledger
):
    async with running(RedisStore(redis_url), ledger, replica_count=50) as it:
        redis_server.kill()
        share = FREE_OF_BALANCES.concurrent_requests // 50
        leases = [
            await it.control.admit(request(str(number), tier=FREE_OF_BALANCES))
            for number in range(share)
        ]
        with pytest.raises(LimitReachedError) as refused:
            await it.control.admit(request("one more", tier=FREE_OF_BALANCES))
        assert refused.value.reason == "CONCURRENCY_LIMITED"
        for lease in leases:
            await lease.charge(0)
            await lease.settle(Delivery(artifact_count=1))
        redis_server.restart()
        observer = new_store(redis_url)
        await it.control.reconcile("acme")

        async def is_right():
            snapshot = await observer.snapshot("acme")
            return snapshot.is_known and await agrees(observer, ledger)

        await until(is_right)  # what was charged meanwhile is in the store's balance
        await observer.close_store()


async def test_what_cannot_be_charged_is_neither_complete_nor_drawn(any_store_url, ledger):
    async with running(new_store(any_store_url), ledger) as it:
        lease = await it.control.admit(request("a"))
        ledger.is_down = True
        with pytest.raises(UnavailableError):
            await lease.charge(0)
        await lease.refund()
        assert it.metric("gateway_degraded", dependency="ledger") == 1
        for number in range(5):
            with pytest.raises(UnavailableError):
                await it.control.admit(request(str(number)))
        assert (await usage(it.store)).held_millicredits == 0
        ledger.is_down = False
        lease = None

        async def is_admitted():
            nonlocal lease
            try:
                lease = await it.control.admit(request("b"))
            except UnavailableError:
                return False
            return True

        await until(is_admitted)
        assert it.metric("gateway_degraded", dependency="ledger") == 0
        await lease.charge(0)
        await lease.settle(Delivery(artifact_count=1))
        assert await agrees(it.store, ledger)


async def test_a_ledger_that_hangs_is_a_ledger_that_is_away(any_store_url, ledger):
    async with running(new_store(any_store_url), ledger, ledger_timeout_s=0.1) as it:
        lease = await it.control.admit(request("a"))
        ledger.is_frozen = True
        with pytest.raises(UnavailableError):
            await lease.charge(0)
        await lease.refund()
        with pytest.raises(UnavailableError):
            await it.control.admit(request("b"))


async def test_a_balance_that_cannot_be_read_lets_nobody_in(any_store_url, ledger):
    ledger.is_down = True
    async with running(new_store(any_store_url), ledger) as it:
        with pytest.raises(UnavailableError):
            await it.control.admit(request())
        ledger.is_down = False
        await (await it.control.admit(request())).refund()


async def test_a_wrong_balance_is_corrected_and_counted(any_store_url, ledger):
    async with running(new_store(any_store_url), ledger, reconcile_interval_s=0.1) as it:
        await (await it.control.admit(request("a"))).refund()
        ledger.entries["acme", "elsewhere", "artifact-0"] = 70
        await until(lambda: agrees(it.store, ledger))
        assert it.metric("gateway_balance_corrections_total") == 1


async def test_corrections_under_load_neither_lose_nor_double_a_credit(any_store_url, ledger):
    """Requests of all kinds, reconciled all the time: store and ledger agree at the end."""
    async with running(new_store(any_store_url), ledger, reconcile_interval_s=0.005) as it:

        async def use(number):
            pictures = number % 4
            lease = await it.control.admit(request(f"r{number}", pictures=max(1, pictures)))
            for index in range(pictures):
                await asyncio.sleep(0.001 * (number % 3))
                await lease.charge(index)
            await (lease.settle(Delivery(artifact_count=1)) if pictures else lease.refund())

        for start in range(0, 200, 50):
            await asyncio.gather(*(use(start + number) for number in range(50)))
        assert sum(ledger.entries.values()) == 300 * PRICE
        assert await agrees(it.store, ledger)
        assert (await usage(it.store)).request_count == 150
        assert it.metric("gateway_balance_corrections_total") == 0


async def test_a_retry_of_a_charged_request_leaves_the_balance_right(any_store_url, ledger):
    async with running(new_store(any_store_url), ledger) as it:
        for _ in range(3):
            lease = await it.control.admit(request("again", pictures=2))
            await lease.charge(0)
            await it.control.reconcile("acme")
            await lease.settle(Delivery(artifact_count=1))
        await until(lambda: agrees(it.store, ledger))
        assert sum(ledger.entries.values()) == PRICE
