"""What both stores promise; each test runs on memory and on a real server."""

import asyncio

from services.gateway.admission.store import (
    AlreadyRunning,
    Balance,
    BalanceUnknown,
    Granted,
    Limit,
    Refused,
)
from services.gateway.period import Period
from tests.gateway.admission.asking import (
    admit,
    close,
    know,
    limits,
    outcome,
    usage,
)

NOVEMBER, DECEMBER = Period(year=2026, month=11), Period(year=2026, month=12)


async def test_an_account_whose_balance_nobody_told_is_not_let_in(store):
    assert isinstance(await admit(store), BalanceUnknown)
    snapshot = await store.snapshot("acme")
    assert (snapshot.is_known, snapshot.running) == (False, frozenset())
    await know(store)
    assert isinstance(await admit(store), Granted)
    assert (await store.snapshot("acme")).is_known


async def test_a_grant_holds_a_lease_and_its_reservation(store, clock):
    await know(store)
    decision = await admit(store, reserve=700)
    found = await usage(store)
    assert decision.usage == found
    assert (found.running_count, found.held_millicredits) == (1, 700)
    assert (found.request_count, found.charged_millicredits) == (0, 0)
    assert found.now_ms == clock.now_ms
    assert (await store.snapshot("acme")).running == {"r1"}


async def test_settling_charges_what_was_delivered_and_frees_the_rest(store):
    await know(store)
    await admit(store, reserve=700)
    assert await close(store, requests=1, charged=300)
    found = await usage(store)
    assert (found.running_count, found.held_millicredits) == (0, 0)
    assert (found.request_count, found.charged_millicredits) == (1, 300)


async def test_a_refund_leaves_nothing_behind(store):
    await know(store)
    await admit(store, reserve=700)
    assert await close(store)
    found = await usage(store)
    assert (found.running_count, found.held_millicredits) == (0, 0)
    assert (found.request_count, found.charged_millicredits) == (0, 0)


async def test_a_lease_is_closed_exactly_once(store):
    await know(store)
    await admit(store, reserve=700)
    closings = [close(store, requests=1, charged=300) for _ in range(20)]
    assert sorted(await asyncio.gather(*closings)) == [False] * 19 + [True]
    assert (await usage(store)).charged_millicredits == 300


async def test_only_the_owner_closes_a_lease(store):
    await know(store)
    await admit(store, reserve=700)
    assert not await close(store, owner="somebody", requests=1, charged=300)
    assert (await usage(store)).held_millicredits == 700
    assert await close(store, requests=1, charged=300)


async def test_the_same_question_again_changes_nothing(store):
    await know(store)
    first = await admit(store, reserve=700, burst=1)
    again = await admit(store, reserve=700, burst=1)
    assert isinstance(again, Granted)
    assert again.usage == first.usage


async def test_another_attempt_at_a_running_request_is_told_so(store):
    await know(store)
    await admit(store, reserve=700)
    before = await store.snapshot("acme")
    assert isinstance(await admit(store, owner="o2", reserve=700), AlreadyRunning)
    assert await store.snapshot("acme") == before


async def test_the_bucket_lets_a_burst_through_and_then_its_rate(store, clock):
    await know(store)
    rate = {"requests_per_minute": 60, "burst": 10}
    outcomes = [await outcome(store, f"a{n}", **rate) for n in range(11)]
    assert outcomes == ["granted"] * 10 + ["requests"]
    await clock.advance(999)
    assert await outcome(store, "b", **rate) == "requests"
    await clock.advance(1)
    assert await outcome(store, "b", **rate) == "granted"
    assert await outcome(store, "c", **rate) == "requests"


async def test_a_refusal_by_rate_says_when_to_come_back(store, clock):
    await know(store)
    rate = {"requests_per_minute": 7, "burst": 1}
    await admit(store, "a", **rate)
    await clock.advance(1000)
    refused = await admit(store, "b", **rate)
    assert isinstance(refused, Refused)
    assert refused.retry_after_ms == 7572  # 60,000 / 7 = 8571.4, a second has passed
    await clock.advance(refused.retry_after_ms - 1)
    assert await outcome(store, "b", **rate) == "requests"
    await clock.advance(1)
    assert await outcome(store, "b", **rate) == "granted"


async def test_at_110_a_minute_100_requests_in_a_minute_are_all_admitted(store, clock):
    await know(store)
    for number in range(100):
        await clock.advance(600)
        assert await outcome(store, f"r{number}", requests_per_minute=110, burst=1) == "granted"
        assert await close(store, f"r{number}")


async def test_at_60_a_minute_with_burst_10_the_count_of_ten_minutes_is_exact(store, clock):
    await know(store)
    granted = 0
    for tick in range(0, 600_000, 250):
        decision = await outcome(store, f"r{tick}", requests_per_minute=60, burst=10)
        granted += decision == "granted"
        if decision == "granted":
            await close(store, f"r{tick}")
        await clock.advance(250)
    assert granted == 10 + 599  # the bucket was full, then one for each second after the first


async def test_a_full_bucket_overflows(store, clock):
    await know(store)
    rate = {"requests_per_minute": 60, "burst": 3}
    await admit(store, "a", **rate)
    await close(store, "a")
    await clock.advance(24 * 3600 * 1000 - 1)
    outcomes = [await outcome(store, f"b{n}", **rate) for n in range(4)]
    assert outcomes == ["granted"] * 3 + ["requests"]


async def test_concurrency_is_limited_and_a_refusal_burns_no_token(store):
    await know(store)
    narrow = {"requests_per_minute": 1, "burst": 2, "concurrent_requests": 1}
    assert await outcome(store, "a", **narrow) == "granted"
    for number in range(5):
        assert await outcome(store, f"b{number}", **narrow) == "concurrency"
    assert await close(store, "a")
    assert await outcome(store, "c", **narrow) == "granted"


async def test_no_refusal_consumes_anything(store):
    await know(store, request_count=3, charged_millicredits=500)
    for changes in (
        {"monthly_requests": 3},
        {"monthly_millicredits": 1199, "reserve": 700},
    ):
        before = await store.snapshot("acme")
        assert isinstance(await admit(store, "x", **changes), Refused)
        assert await store.snapshot("acme") == before


async def test_the_monthly_quota_counts_charged_and_running_requests(store):
    await know(store, request_count=1)
    quota = {"monthly_requests": 3}
    assert await outcome(store, "a", **quota) == "granted"
    assert await outcome(store, "b", **quota) == "granted"
    assert await outcome(store, "c", **quota) == "quota"
    assert await close(store, "a")  # refunded: it did not count
    assert await outcome(store, "d", **quota) == "granted"
    assert await close(store, "b", requests=1)
    assert await outcome(store, "e", **quota) == "quota"


async def test_credits_can_be_spent_to_the_last_and_no_further(store):
    await know(store, charged_millicredits=100, granted_millicredits=50)
    credit = {"monthly_millicredits": 1000}
    assert await outcome(store, "a", reserve=951, **credit) == "credits"
    assert await outcome(store, "a", reserve=950, **credit) == "granted"
    assert await outcome(store, "b", reserve=1, **credit) == "credits"
    assert await outcome(store, "c", reserve=0, **credit) == "granted"
    assert await close(store, "a", requests=1, charged=900)
    assert await outcome(store, "d", reserve=50, **credit) == "granted"


async def test_of_several_limits_the_one_that_lasts_longest_is_told(store):
    await know(store, request_count=1)
    tight = {"burst": 1, "requests_per_minute": 1, "concurrent_requests": 1}
    assert await outcome(store, "a", **tight) == "granted"
    assert await outcome(store, "b", **tight) == "requests"
    assert await outcome(store, "b", **tight, monthly_requests=2) == "quota"
    everything = tight | {"monthly_requests": 2, "monthly_millicredits": 5}
    assert await outcome(store, "b", reserve=6, **everything) == "credits"


async def test_a_balance_is_set_only_if_nothing_happened_meanwhile(store):
    await know(store)
    seen = await store.snapshot("acme")
    balance = Balance(period=seen.usage.period, request_count=5, charged_millicredits=50)
    await admit(store, "a")
    assert not await store.set_balance("acme", balance, revision=seen.revision)
    seen = await store.snapshot("acme")
    await close(store, "a", requests=1, charged=7)
    assert not await store.set_balance("acme", balance, revision=seen.revision)
    seen = await store.snapshot("acme")
    assert await store.set_balance("acme", balance, revision=seen.revision)
    assert not await store.set_balance("acme", balance, revision=seen.revision)
    assert (await usage(store)).charged_millicredits == 50


async def test_a_balance_of_another_month_is_not_taken(store, clock):
    seen = await store.snapshot("acme")
    balance = Balance(period=NOVEMBER, charged_millicredits=50)
    await clock.set(round(DECEMBER.start.timestamp()) * 1000)
    assert not await store.set_balance("acme", balance, revision=seen.revision)
    assert isinstance(await admit(store), BalanceUnknown)


async def test_what_is_not_enforced_is_let_in_and_told(store):
    await know(store)
    tight = {"burst": 1, "requests_per_minute": 1, "enforced": False}
    assert (await admit(store, "a", **tight)).reached is None
    decision = await admit(store, "b", **tight)
    assert isinstance(decision, Granted)
    assert decision.reached is Limit.REQUESTS
    assert decision.usage.running_count == 2
    assert decision.usage.bucket_units == 0


async def test_accounts_do_not_touch_each_other(store):
    names = ["acme", "ac", "ac}me", "{acme}", "acme}:leases", "Ümläut 猫"]
    for name in names:
        await know(store, name)
        assert await outcome(store, account=name, burst=1, reserve=5) == "granted"
    for name in names:
        assert (await usage(store, name)).held_millicredits == 5
    assert {name async for name in store.accounts()} == set(names)


async def test_one_atomic_decision_lets_exactly_the_limit_through(store):
    await know(store)
    tight = {"concurrent_requests": 7, "monthly_millicredits": 1000, "reserve": 100}
    outcomes = await asyncio.gather(*(outcome(store, f"r{n}", **tight) for n in range(200)))
    assert outcomes.count("granted") == 7
    assert outcomes.count("concurrency") == 193
    found = await usage(store)
    assert (found.running_count, found.held_millicredits) == (7, 700)


async def test_the_bucket_of_a_usage_is_that_of_its_time(store, clock):
    await know(store)
    rate = {"requests_per_minute": 60, "burst": 10}
    assert (await usage(store)).units_of(limits(**rate)) == 600_000
    for number in range(5):
        await admit(store, f"r{number}", **rate)
    assert (await usage(store)).units_of(limits(**rate)) == 300_000
    await clock.advance(1500)
    assert (await usage(store)).units_of(limits(**rate)) == 390_000
    assert (await usage(store)).units_of(limits(requests_per_minute=60, burst=2)) == 120_000
    await clock.advance(-9000)
    assert (await usage(store)).units_of(limits(**rate)) == 300_000


async def test_amounts_as_large_as_a_tier_may_have_stay_exact(store):
    most = 2**53 - 2
    await know(store, charged_millicredits=most - 3)
    assert await outcome(store, reserve=4, monthly_millicredits=most) == "credits"
    assert await outcome(store, reserve=3, monthly_millicredits=most) == "granted"
    assert (await usage(store)).charged_millicredits == most - 3
    assert (await usage(store)).held_millicredits == 3
