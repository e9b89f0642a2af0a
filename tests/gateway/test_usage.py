"""GetUsage and WatchUsage: what callers learn of their own account."""

import asyncio
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from limner.v1 import account_pb2, account_pb2_grpc
from services.gateway.ledger import Ledger
from services.gateway.period import Period
from tests.gateway.harness import reason, running_gateway
from tests.gateway.waiting import until


@pytest.fixture
async def door(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as running:
        yield running


@pytest.fixture
def stub(door):
    return account_pb2_grpc.AccountServiceStub(door.channel)


async def charge(door, request_id):
    await Ledger(engine=door.store.engine).charge(
        account="acme",
        request_id=request_id,
        item="artifact-0",
        millicredits=1500,
        service="generation",
        model="m",
        at=datetime.now(UTC),
    )


def watch(door, stub, interval=None):
    return stub.WatchUsage(
        account_pb2.WatchUsageRequest(interval=interval), metadata=door.authorization
    )


async def test_the_current_month_is_told_with_its_bounds(door, stub):
    await charge(door, "r1")
    answer = await stub.GetUsage(account_pb2.GetUsageRequest(), metadata=door.authorization)
    usage, now = answer.usage, Period.containing(datetime.now(UTC))
    assert (usage.account, usage.tier, usage.period) == ("acme", "unlimited", str(now))
    assert (usage.request_count, usage.charged_millicredits) == (1, 1500)
    assert usage.start_time.ToDatetime(tzinfo=UTC) == now.start
    assert usage.end_time.ToDatetime(tzinfo=UTC) == now.end


async def test_another_month_is_told_by_name_and_a_bad_name_refused(door, stub):
    await charge(door, "r1")
    request = account_pb2.GetUsageRequest(period="2020-01")
    assert (await stub.GetUsage(request, metadata=door.authorization)).usage.request_count == 0
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.GetUsage(account_pb2.GetUsageRequest(period="last"), metadata=door.authorization)
    assert reason(raised.value) == "INVALID_REQUEST"
    assert "period" in raised.value.details()


async def test_a_watch_tells_at_once_and_after_a_change_only(door, stub):
    call = watch(door, stub, Duration(seconds=1))
    updates = aiter(call)
    assert (await anext(updates)).usage.request_count == 0
    await asyncio.sleep(1.5)  # a look in between that finds nothing new
    await charge(door, "r1")
    assert (await anext(updates)).usage.request_count == 1
    call.cancel()
    await until(lambda: door.gateway.server.in_flight == 0)


async def test_a_watch_does_not_hold_up_the_drain(door, stub):
    call = watch(door, stub, Duration(seconds=3600))
    await anext(aiter(call))
    draining = asyncio.create_task(door.gateway.server.drain(grace_s=3600))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await anext(aiter(call))
    assert reason(raised.value) == "SHUTTING_DOWN"
    await draining


@pytest.mark.parametrize("seconds", [0, -1, 3601])
async def test_an_interval_out_of_bounds_is_refused(door, stub, seconds):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await anext(aiter(watch(door, stub, Duration(seconds=seconds))))
    assert reason(raised.value) == "INVALID_REQUEST"
    assert "interval" in raised.value.details()
