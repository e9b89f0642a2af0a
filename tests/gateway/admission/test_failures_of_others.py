"""What other gateways get wrong in public, each as a test that this one does not."""

import asyncio
import time

import pytest

from services.gateway.admission.redis_store import RedisStore
from tests.gateway.admission.doors import (
    PICTURE,
    PICTURE_MILLICREDITS,
    door,
    finished,
    ledger_usage,
    metadata_of,
    outcome,
)
from tests.gateway.harness import failure, reason, until


async def standing(gate, name):
    """What remains of a limit, as an admitted call is told."""
    call = gate.generate()
    await finished(call)
    return (await metadata_of(call))[f"x-ratelimit-remaining-{name}"]


async def test_check_then_spend_does_not_race_across_gateways(tmp_path, fake, redis_url):
    """Two gateways, one balance for five pictures, sixty requests at once."""
    tier = {"monthly_millicredits": 5 * PICTURE_MILLICREDITS}
    async with (
        door(tmp_path, fake, redis_url=redis_url, **tier) as one,
        door(tmp_path, fake, redis_url=redis_url, **tier) as other,
    ):
        calls = [gate.generate(**PICTURE) for gate in (one, other) for _ in range(30)]
        outcomes = await asyncio.gather(*map(outcome, calls))
    assert outcomes.count("OK") == 5
    assert outcomes.count("RESOURCE_EXHAUSTED") == 55
    assert (await ledger_usage(tmp_path)).charged_millicredits == tier["monthly_millicredits"]


async def test_the_concurrency_of_gateways_is_one_limit(tmp_path, fake, redis_url):
    async with (
        door(tmp_path, fake, redis_url=redis_url, concurrent_requests=3) as one,
        door(tmp_path, fake, redis_url=redis_url, concurrent_requests=3) as other,
    ):
        calls = [gate.generate("hang") for gate in (one, other) for _ in range(10)]
        tasks = [asyncio.create_task(outcome(call)) for call in calls]
        await until(lambda: sum(task.done() for task in tasks) == 17)
        await until(lambda: fake.running_count == 3)
        for call in calls:
            call.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("end", ["cancel", "timeout", "failure"])
async def test_a_concurrency_counter_is_released_after_a_cancel_or_a_timeout(
    tmp_path, fake, any_store_url, end
):
    async with door(tmp_path, fake, redis_url=any_store_url, concurrent_requests=1) as gate:
        for _ in range(3):
            if end == "cancel":
                call = gate.generate("hang")
                await anext(aiter(call))
                call.cancel()
            elif end == "timeout":
                assert await outcome(gate.generate("hang", timeout=1)) == "DEADLINE_EXCEEDED"
            else:
                assert await outcome(gate.generate("refuse")) == "INVALID_ARGUMENT"
            await until(lambda: gate.gateway.server.in_flight == 0)
            assert await outcome(gate.generate()) == "OK"


async def test_a_concurrency_rejection_burns_no_request(tmp_path, fake, any_store_url):
    tier = {"concurrent_requests": 1, "burst": 3, "requests_per_minute": 1, "monthly_requests": 3}
    async with door(tmp_path, fake, redis_url=any_store_url, **tier) as gate:
        running = gate.generate("hang")
        await anext(aiter(running))
        for _ in range(10):
            assert reason(await failure(gate.generate())) == "CONCURRENCY_LIMITED"
        running.cancel()
        await until(lambda: gate.gateway.server.in_flight == 0)
        assert await outcome(gate.generate()) == "OK"
        assert await standing(gate, "quota") == "1"


async def test_no_reservation_leaks_however_a_request_ends(tmp_path, fake, redis_url):
    store = RedisStore(redis_url, timeout_s=30)
    async with door(tmp_path, fake, redis_url=redis_url, monthly_millicredits=10_000) as gate:
        ends = ["picture", "refuse", "queue full", "fail after picture"] * 3
        outcomes = [await outcome(gate.generate(prompt, **PICTURE)) for prompt in ends]
        assert set(outcomes) == {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "INTERNAL"}
        for event_count in range(3):
            call = gate.generate("picture, then hang", **PICTURE, sample_count=2)
            events = aiter(call)
            for _ in range(event_count):
                await anext(events)
            call.cancel()
        await until(lambda: gate.gateway.server.in_flight == 0)
        usage = (await store.snapshot("acme")).usage
    await store.close_store()
    ledger = await ledger_usage(tmp_path)
    assert (usage.running_count, usage.held_millicredits) == (0, 0)
    assert usage.charged_millicredits == ledger.charged_millicredits
    assert usage.request_count == ledger.request_count >= 6


async def test_a_retry_is_not_charged_twice(tmp_path, fake, any_store_url):
    tier = {"monthly_millicredits": 10_000}
    async with door(tmp_path, fake, redis_url=any_store_url, **tier) as gate:
        for _ in range(3):
            call = gate.generate(**PICTURE, metadata=[("x-request-id", "the same")])
            assert [event async for event in call][-1].artifact.last
        usage = await ledger_usage(tmp_path)
        assert (usage.request_count, usage.charged_millicredits) == (1, PICTURE_MILLICREDITS)
        assert await standing(gate, "credits") == "9.968"


async def test_a_request_id_used_again_buys_no_other_picture(tmp_path, fake, any_store_url):
    async with door(tmp_path, fake, redis_url=any_store_url) as gate:
        for negative in ("one", "two", "three"):
            same = [("x-request-id", "the same")]
            await finished(gate.generate(**PICTURE, negative_prompt=negative, metadata=same))
    assert (await ledger_usage(tmp_path)).charged_millicredits == 3 * PICTURE_MILLICREDITS


async def test_a_request_that_runs_is_not_run_a_second_time(tmp_path, fake, any_store_url):
    async with door(tmp_path, fake, redis_url=any_store_url) as gate:
        same = [("x-request-id", "the same")]
        running = gate.generate("step by step", metadata=same)
        await anext(aiter(running))
        error = await failure(gate.generate("step by step", metadata=same))
        assert (error.code().name, reason(error)) == ("ABORTED", "DUPLICATE_REQUEST")
        fake.more.set()
        await finished(running)
        assert await outcome(gate.generate("step by step", metadata=same)) == "OK"
    assert (await ledger_usage(tmp_path)).request_count == 1


async def test_an_error_of_redis_does_not_silently_become_a_limit_per_process(
    tmp_path, fake, redis_url, redis_server
):
    """It is a divided limit, and it is told: by the gauge and by the decision."""
    tier = {"burst": 8, "requests_per_minute": 1}
    async with door(tmp_path, fake, redis_url=redis_url, replicas=4, **tier) as gate:
        await finished(gate.generate())
        assert gate.metric("gateway_degraded", dependency="store") == 0
        redis_server.kill()
        outcomes = [await outcome(gate.generate()) for _ in range(6)]
        assert outcomes == ["OK"] * 2 + ["RESOURCE_EXHAUSTED"] * 4
        assert gate.metric("gateway_degraded", dependency="store") == 1
        assert gate.metric("gateway_store_errors_total") >= 3
        labels = {"tier": "narrow", "service": "generation", "decision": "degraded"}
        assert gate.metric("gateway_admissions_total", **labels) == 2
        redis_server.restart()

        async def is_back():
            await outcome(gate.generate())
            return gate.metric("gateway_degraded", dependency="store") == 0

        await until(is_back)


async def test_no_queue_grows_at_the_door(tmp_path, fake, any_store_url):
    """A refusal is told at once: what is not admitted waits nowhere."""
    async with door(tmp_path, fake, redis_url=any_store_url, concurrent_requests=2) as gate:
        calls = [gate.generate("hang") for _ in range(60)]
        tasks = [asyncio.create_task(outcome(call)) for call in calls]
        await until(lambda: sum(task.done() for task in tasks) == 58)
        assert gate.gateway.server.in_flight == 2
        for call in calls:
            call.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_limiter_that_was_built_is_registered(tmp_path, fake):
    """With nothing configured but the tier: a gateway out of the box refuses what is too much."""
    async with door(tmp_path, fake, burst=2, requests_per_minute=1) as gate:
        outcomes = [await outcome(gate.generate()) for _ in range(3)]
    assert outcomes == ["OK", "OK", "RESOURCE_EXHAUSTED"]


async def test_a_frozen_redis_holds_nobody_up(tmp_path, fake, redis_url, redis_server):
    """Not the request that meets it first for long, and not those after it at all."""
    async with door(tmp_path, fake, redis_url=redis_url, redis_timeout_s=0.25) as gate:
        await finished(gate.generate())
        redis_server.freeze()
        started = time.monotonic()
        for _ in range(20):
            assert await outcome(gate.generate()) == "OK"
        asked = gate.metric("gateway_store_errors_total")
        redis_server.thaw()
        # Three calls meet the timeout, then one a second does; each of 20 would without a breaker.
        assert 3 <= asked <= 3 + 1 + (time.monotonic() - started)
