"""What both stores promise over time: expiry, heartbeats, months, clocks that go back."""

from datetime import UTC, datetime

import pytest

from services.gateway.admission.store import (
    BalanceUnknown,
    Expired,
    Granted,
    Renewal,
)
from services.gateway.period import Period
from tests.gateway.admission.asking import (
    LEASE_MS,
    admit,
    close,
    know,
    outcome,
    ticket,
    usage,
)

NOVEMBER, DECEMBER = Period(year=2026, month=11), Period(year=2026, month=12)


async def test_an_expired_lease_gives_back_slot_and_reservation(store, clock):
    await know(store)
    await admit(store, reserve=700, concurrent_requests=1)
    await clock.advance(LEASE_MS - 1)
    assert await store.sweep("acme") == Expired()
    await clock.advance(1)
    assert await store.sweep("acme") == Expired(lease_count=1, millicredits=700)
    assert await store.sweep("acme") == Expired()
    found = await usage(store)
    assert (found.running_count, found.held_millicredits) == (0, 0)
    assert not await close(store, requests=1, charged=300)
    assert (await usage(store)).charged_millicredits == 0


async def test_a_balance_is_unknown_once_a_lease_did_not_end_by_its_owners_hand(store, clock):
    """What it had charged is in the ledger alone."""

    async def is_known():
        return (await store.snapshot("acme")).is_known

    await know(store)
    await admit(store, "a")
    assert await close(store, "a")
    assert await is_known()
    assert not await close(store, "a")  # it may have been charged for something
    assert not await is_known()
    assert isinstance(await admit(store, "b"), BalanceUnknown)

    await know(store)
    await admit(store, "b")
    await clock.advance(LEASE_MS)
    assert isinstance(await admit(store, "c"), BalanceUnknown)

    await know(store)
    await admit(store, "c")
    doubtful = store.close(ticket("c"), request_count=1, charged_millicredits=5, is_doubtful=True)
    assert await doubtful
    assert not await is_known()
    assert (await usage(store)).charged_millicredits == 5


async def test_an_admission_sweeps_first_and_tells_what_expired(store, clock):
    await know(store)
    await admit(store, "a", reserve=700, concurrent_requests=1)
    await clock.advance(LEASE_MS)
    decision = await admit(store, "b", reserve=1, concurrent_requests=1)
    assert decision == BalanceUnknown(expired=Expired(lease_count=1, millicredits=700))
    await know(store)
    decision = await admit(store, "b", reserve=1, concurrent_requests=1)
    assert isinstance(decision, Granted)
    assert decision.expired == Expired()
    assert (await usage(store)).held_millicredits == 1


async def test_a_renewed_lease_lives_on(store, clock):
    await know(store)
    await admit(store, reserve=700)
    for _ in range(5):
        await clock.advance(LEASE_MS - 1)
        renewed = await store.renew(ticket(), reserve_millicredits=700, lease_ms=LEASE_MS)
        assert renewed is Renewal.RENEWED
        assert await store.sweep("acme") == Expired()
    assert (await usage(store)).held_millicredits == 700
    assert await close(store, requests=1, charged=1)


async def test_a_lost_lease_is_put_back_by_its_heartbeat(store, clock):
    await know(store)
    await admit(store, reserve=700)
    await clock.advance(LEASE_MS)
    await store.sweep("acme")
    renewed = await store.renew(ticket(), reserve_millicredits=700, lease_ms=LEASE_MS)
    assert renewed is Renewal.RESTORED
    assert (await usage(store)).held_millicredits == 700
    assert await close(store, requests=1, charged=300)
    assert (await usage(store)).charged_millicredits == 300


async def test_a_lost_lease_that_a_retry_took_over_stays_with_the_retry(store, clock):
    await know(store)
    await admit(store, reserve=700)
    await clock.advance(LEASE_MS)
    await store.sweep("acme")
    await know(store)
    assert isinstance(await admit(store, owner="o2", reserve=700), Granted)
    renewed = await store.renew(ticket(), reserve_millicredits=700, lease_ms=LEASE_MS)
    assert renewed is Renewal.TAKEN
    assert not await close(store)
    assert await close(store, owner="o2")


async def test_a_new_month_begins_at_zero_and_keeps_what_runs(store, clock):
    await know(store, request_count=9, charged_millicredits=900, granted_millicredits=50)
    await clock.set(round(DECEMBER.start.timestamp()) * 1000 - 1)
    assert await outcome(store, "a", reserve=150, monthly_millicredits=1000) == "granted"
    assert await outcome(store, "b", reserve=1, monthly_millicredits=1000) == "credits"
    assert (await usage(store)).period == NOVEMBER
    await clock.advance(1)
    found = await usage(store)
    assert (found.period, found.request_count, found.charged_millicredits) == (DECEMBER, 0, 0)
    assert (found.granted_millicredits, found.held_millicredits) == (0, 150)
    assert await outcome(store, "c", reserve=851, monthly_millicredits=1000) == "credits"
    assert await outcome(store, "c", reserve=850, monthly_millicredits=1000) == "granted"
    assert await close(store, "a", requests=1, charged=150)
    assert (await usage(store)).charged_millicredits == 150


@pytest.mark.parametrize(
    "moment", ["2024-02-29", "2026-12-31", "2027-01-01", "2027-02-28", "2000-02-29", "2099-12-31"]
)
async def test_the_month_is_that_of_the_calendar(store, clock, moment):
    day = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    for seconds in (0, 86_399):
        await clock.set((round(day.timestamp()) + seconds) * 1000 + 999 * (seconds > 0))
        found = await usage(store, f"{moment}-{seconds}")
        assert found.period == Period(year=day.year, month=day.month)


async def test_a_clock_that_goes_back_gives_no_tokens_and_reopens_no_month(store, clock):
    await clock.set(round(DECEMBER.start.timestamp()) * 1000 + 5_000)
    await know(store, request_count=7)
    rate = {"requests_per_minute": 60, "burst": 2}
    assert await outcome(store, "a", **rate) == "granted"
    assert await outcome(store, "b", **rate) == "granted"
    await clock.advance(-3_600_000)
    assert await outcome(store, "c", **rate) == "requests"
    found = await usage(store)
    assert (found.period, found.request_count, found.running_count) == (DECEMBER, 7, 2)
    await clock.advance(1_000)
    assert await outcome(store, "c", **rate) == "granted"
    assert await outcome(store, "d", **rate) == "requests"
