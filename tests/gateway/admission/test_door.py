"""What a client sees of admission: metadata, refusals, limits of the tier, charges."""

import asyncio
import logging

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from limner.v1 import (
    account_pb2,
    account_pb2_grpc,
    admin_pb2,
    admin_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from tests.gateway.admission.doors import (
    PICTURE,
    PICTURE_MILLICREDITS,
    door,
    finished,
    ledger_usage,
    metadata_of,
    outcome,
)
from tests.gateway.harness import error_info, failure, reason, until


def details(error, kind):
    """The detail of that kind, or None."""
    for packed in rpc_status.from_call(error).details:
        found = kind()
        if packed.Unpack(found):
            return found
    return None


def trailers(error):
    return dict(error.trailing_metadata())


async def test_every_admitted_call_tells_where_the_limits_stand(tmp_path, fake):
    tier = {"burst": 10, "requests_per_minute": 60, "concurrent_requests": 3}
    monthly = {"monthly_requests": 100, "monthly_millicredits": 10_500}
    async with door(tmp_path, fake, **tier, **monthly) as gate:
        call = gate.generate(**PICTURE, sample_count=2, metadata=[("x-request-id", "r1")])
        await finished(call)
        told = await metadata_of(call)
    assert told["x-request-id"] == "r1"
    assert told["x-ratelimit-limit-requests"] == "10"
    assert told["x-ratelimit-remaining-requests"] == "9"
    assert told["x-ratelimit-reset-requests"] == "1"
    assert told["x-ratelimit-limit-concurrency"] == "3"
    assert told["x-ratelimit-remaining-concurrency"] == "2"
    assert told["x-ratelimit-limit-quota"] == "100"
    assert told["x-ratelimit-remaining-quota"] == "99"
    assert told["x-ratelimit-limit-credits"] == "10.5"
    assert told["x-ratelimit-remaining-credits"] == "10.436"
    assert 0 < int(told["x-ratelimit-reset-credits"]) <= 31 * 86_400
    assert told["x-limner-estimated-credits"] == "0.064"
    assert told["x-limner-charged-credits"] == "0.032"  # the fake draws one picture


async def test_limits_that_the_tier_does_not_have_are_not_told(tmp_path, fake):
    async with door(tmp_path, fake) as gate:
        call = gate.generate(**PICTURE)
        await finished(call)
        told = await metadata_of(call)
    assert "x-ratelimit-limit-requests" in told
    assert not {"x-ratelimit-limit-quota", "x-ratelimit-limit-credits"} & set(told)


async def test_a_refusal_by_rate_says_when_to_come_back_in_trailers(tmp_path, fake):
    async with door(tmp_path, fake, burst=1, requests_per_minute=1) as gate:
        await finished(gate.generate())
        call = gate.generate()
        error = await failure(call)
        assert not await call.initial_metadata()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(error) == "RATE_LIMITED"
    info = error_info(error)
    assert (info.domain, info.metadata["limit"], info.metadata["tier"]) == (
        "limner",
        "requests",
        "narrow",
    )
    retry_ms = details(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds()
    assert 0 < retry_ms <= 60_000
    assert trailers(error)["grpc-retry-pushback-ms"] == str(retry_ms)
    assert trailers(error)["x-ratelimit-remaining-requests"] == "0"
    assert details(error, error_details_pb2.QuotaFailure) is None
    assert len(fake.calls) == 1


async def test_a_refusal_by_concurrency_says_to_come_back_soon(tmp_path, fake):
    async with door(tmp_path, fake, concurrent_requests=1) as gate:
        running = gate.generate("hang")
        await anext(aiter(running))
        error = await failure(gate.generate())
        running.cancel()
        await until(lambda: fake.running_count == 0)
    assert reason(error) == "CONCURRENCY_LIMITED"
    assert trailers(error)["grpc-retry-pushback-ms"] == "1000"
    assert details(error, error_details_pb2.RetryInfo).retry_delay.seconds == 1
    assert trailers(error)["x-ratelimit-remaining-concurrency"] == "0"


@pytest.mark.parametrize(
    ("tier", "why"),
    [
        ({"monthly_requests": 1}, "QUOTA_EXHAUSTED"),
        ({"monthly_millicredits": PICTURE_MILLICREDITS}, "CREDITS_EXHAUSTED"),
    ],
)
async def test_a_refusal_for_the_month_says_not_to_come_back(tmp_path, fake, tier, why):
    async with door(tmp_path, fake, **tier) as gate:
        await finished(gate.generate(**PICTURE))
        error = await failure(gate.generate(**PICTURE))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(error) == why
    assert trailers(error)["grpc-retry-pushback-ms"] == "-1"
    assert details(error, error_details_pb2.RetryInfo) is None
    violations = details(error, error_details_pb2.QuotaFailure).violations
    assert [violation.subject for violation in violations] == ["account:acme"]
    assert (await ledger_usage(tmp_path)).charged_millicredits == PICTURE_MILLICREDITS


async def test_all_that_exceeds_the_tier_is_told_at_once(tmp_path, fake):
    async with door(
        tmp_path, fake, max_pixels=64 * 64, max_step_count=4, max_sample_count=1
    ) as gate:
        asked = {"width": 65, "height": 64, "step_count": 5, "sample_count": 2}
        error = await failure(gate.generate(**asked))
        await finished(gate.generate(width=64, height=64, step_count=4, sample_count=1))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = details(error, error_details_pb2.BadRequest).field_violations
    assert [v.field for v in violations] == ["width", "height", "step_count", "sample_count"]
    assert {v.reason for v in violations} == {"TIER_LIMIT"}
    assert len(fake.calls) == 1


async def test_a_model_outside_the_tier_is_denied_and_one_that_is_not_there_is_not_found(
    tmp_path, fake
):
    async with door(tmp_path, fake, models=["lines-*"]) as gate:
        denied = await failure(gate.generate(model="dots"))
        unknown = await failure(gate.generate(model="lines-1"))
    assert denied.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason(denied) == "MODEL_NOT_ALLOWED"
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    assert not fake.calls


async def test_a_refused_request_consumes_nothing(tmp_path, fake):
    async with door(tmp_path, fake, burst=3, requests_per_minute=1, max_step_count=4) as gate:
        for _ in range(5):
            assert await outcome(gate.generate(step_count=5)) == "INVALID_ARGUMENT"
        call = gate.generate()
        await finished(call)
        told = await metadata_of(call)
    assert told["x-ratelimit-remaining-requests"] == "2"


async def test_priority_and_queue_share_of_the_tier_go_to_the_backend(tmp_path, fake):
    async with door(tmp_path, fake, priority=300, queue_share=0.25) as gate:
        forged = [("x-limner-priority", "999"), ("x-limner-queue-share", "1")]
        await finished(gate.generate(metadata=forged))
    sent = dict(fake.calls[0].metadata)
    assert sent["x-limner-priority"] == "300"
    assert sent["x-limner-queue-share"] == "0.25"


async def test_shadow_mode_measures_and_lets_in(tmp_path, fake, caplog):
    caplog.set_level(logging.INFO)
    tight = {"burst": 1, "requests_per_minute": 1, "max_step_count": 1, "models": ["lines-*"]}
    async with door(tmp_path, fake, shadow=True, **tight) as gate:
        for _ in range(3):
            await finished(gate.generate(step_count=2))
        labels = {"tier": "narrow", "service": "generation"}
        assert gate.metric("gateway_admissions_total", decision="shadow", **labels) == 2
        assert gate.metric("gateway_admissions_total", decision="allowed", **labels) == 1
    said = [r for r in caplog.records if r.message == "a limit that is not enforced was reached"]
    assert len(said) == 2 + 3 + 3  # by rate twice, by steps and by model each time
    assert (await ledger_usage(tmp_path)).request_count == 3


async def test_what_came_near_a_limit_is_counted(tmp_path, fake):
    async with door(tmp_path, fake, burst=20, requests_per_minute=1) as gate:
        for _ in range(20):
            await finished(gate.generate())
        near = {"tier": "narrow", "limit": "requests"}
        assert gate.metric("gateway_near_limit_total", **near) == 1 + 1  # with 1 and 0 left
        assert gate.metric("gateway_near_limit_total", tier="narrow", limit="concurrency") == 0


async def test_credits_and_decisions_are_counted(tmp_path, fake):
    async with door(tmp_path, fake, monthly_millicredits=100) as gate:
        await finished(gate.generate(**PICTURE, sample_count=2))
        assert await outcome(gate.generate("refuse", **PICTURE)) == "INVALID_ARGUMENT"
        assert await outcome(gate.generate(**PICTURE, sample_count=3)) == "RESOURCE_EXHAUSTED"
        credits = {
            event: gate.metric("gateway_credits_total", event=event)
            for event in ("reserved", "settled", "refunded", "expired")
        }
        decisions = {
            decision: gate.metric(
                "gateway_admissions_total", tier="narrow", service="generation", decision=decision
            )
            for decision in ("allowed", "quota")
        }
        assert gate.metric("gateway_admission_seconds_count") == 3
    assert credits == pytest.approx(
        {"reserved": 0.096, "settled": 0.032, "refunded": 0.064, "expired": 0}
    )
    assert decisions == {"allowed": 2, "quota": 1}


async def test_the_price_is_in_the_ledger_before_the_picture_is_complete(tmp_path, fake):
    fake.artifact_bytes = 600_000
    async with door(tmp_path, fake) as gate:
        call = gate.generate(**PICTURE)
        charged = []
        async for event in call:
            if event.HasField("artifact"):
                charged.append((event.artifact.last, await ledger_usage(tmp_path)))
    assert [last for last, _ in charged] == [False, False, True]
    assert charged[-1][1].charged_millicredits == PICTURE_MILLICREDITS
    assert charged[-1][1].request_count == 1


async def test_a_seed_that_was_left_out_is_that_of_the_request_and_its_id(tmp_path, fake):
    async with door(tmp_path, fake) as gate:
        for request_id, fields in (
            ("a", {}),
            ("a", {}),
            ("b", {}),
            ("a", {"negative_prompt": "blur"}),
            ("a", {"seed": 7}),
        ):
            await finished(gate.generate(metadata=[("x-request-id", request_id)], **fields))
    seeds = [seen.request.seed for seen in fake.calls]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[1:4])) == 3
    assert seeds[4] == 7
    assert all(0 <= seed < 2**32 for seed in seeds)


async def test_absurd_sizes_are_the_backends_to_refuse(tmp_path, fake):
    most = 2**31 - 1
    wide = {"max_pixels": most, "max_step_count": most, "max_sample_count": most}
    async with door(tmp_path, fake, **wide, monthly_millicredits=2**53) as gate:
        for fields in (
            {"width": -5, "height": -5, "step_count": -1, "sample_count": -1},
            {"width": 1, "height": most, "step_count": most, "sample_count": most},
        ):
            assert await outcome(gate.generate("refuse", **fields)) == "INVALID_ARGUMENT"
        call = gate.generate(**PICTURE)
        await finished(call)
        told = await metadata_of(call)
    assert told["x-ratelimit-limit-credits"] == "9007199254740.992"
    assert told["x-ratelimit-remaining-credits"] == "9007199254740.96"
    assert len(fake.calls) == 3


async def test_refusals_under_load_wait_for_nothing(tmp_path, fake):
    async with door(tmp_path, fake, concurrent_requests=5) as gate:
        calls = [gate.generate("hang") for _ in range(100)]
        tasks = [asyncio.create_task(outcome(call)) for call in calls]
        await until(lambda: sum(task.done() for task in tasks) == 95)
        assert fake.running_count == gate.gateway.server.in_flight == 5
        for call in calls:
            call.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: fake.running_count == 0)


LIMITS = {
    f"x-ratelimit-{what}-{limit}"
    for what in ("limit", "remaining", "reset")
    for limit in ("requests", "concurrency", "quota", "credits")
}
TOLD = {*LIMITS, "x-request-id", "x-limner-charged-credits"}


async def told_by(call):
    """The names of all metadata that an answer or a refusal carries."""
    pairs = []
    try:
        await call if hasattr(call, "__await__") else await finished(call)
        pairs = [*await call.initial_metadata(), *await call.trailing_metadata()]
    except grpc.aio.AioRpcError as error:
        pairs = [*error.initial_metadata(), *error.trailing_metadata()]
    names = [key for key, _ in pairs]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice
    return set(names)


async def test_every_call_tells_all_limits_the_request_id_and_the_cost(
    tmp_path, fake, any_store_url
):
    """Answers and refusals, streams and single answers alike."""
    tier = {"monthly_requests": 100, "monthly_millicredits": 10_000, "max_step_count": 5}
    async with door(tmp_path, fake, redis_url=any_store_url, **tier) as gate:
        models = model_pb2_grpc.ModelServiceStub(gate.channel)
        account = account_pb2_grpc.AccountServiceStub(gate.channel)
        admin = admin_pb2_grpc.AdminServiceStub(gate.channel)
        key = {"metadata": gate.authorization}
        for call in (
            gate.generate(),
            gate.generate("refuse"),  # by the backend
            gate.generate("fail after picture"),
            gate.generate("picture", step_count=6),  # by the tier
            gate.generate(model="no such model"),
            models.ListModels(model_pb2.ListModelsRequest(), **key),
            account.GetAccount(account_pb2.GetAccountRequest(), **key),
            account.GetUsage(account_pb2.GetUsageRequest(), **key),
            account.GetUsage(account_pb2.GetUsageRequest(period="never"), **key),
            admin.ListTiers(admin_pb2.ListTiersRequest(), **key),
            admin.CreateAccount(admin_pb2.CreateAccountRequest(name="NO"), **key),
        ):
            assert await told_by(call) >= TOLD


async def test_a_refusal_for_a_limit_tells_the_cost_and_all_limits_once(tmp_path, fake):
    tier = {"monthly_requests": 1, "monthly_millicredits": 10_000}
    async with door(tmp_path, fake, **tier) as gate:
        await finished(gate.generate())
        assert await told_by(gate.generate("picture", seed=1)) >= TOLD
