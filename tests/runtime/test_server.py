from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from limner.v1 import generation_pb2_grpc
from services.runtime.server import GrpcServer
from tests.runtime.conftest import GENERATION, Request, Response, Running, Start

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


async def test_health_is_not_serving_until_ready_for_each_service_and_the_whole(
    running: Running,
) -> None:
    for service in ("", GENERATION):
        assert await health_of(running.channel, service) == NOT_SERVING
    running.server.set_serving(True)
    for service in ("", GENERATION):
        assert await health_of(running.channel, service) == SERVING
    running.server.set_serving(False, GENERATION)
    assert await health_of(running.channel, GENERATION) == NOT_SERVING
    assert await health_of(running.channel, "") == SERVING


async def test_health_of_a_service_that_is_not_offered_is_not_found(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_of(running.channel, "limner.v1.TrainingService")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(KeyError):
        running.server.set_serving(True, "limner.v1.TrainingService")


async def test_a_health_watcher_that_leaves_does_not_make_the_others_deaf(
    running: Running,
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(running.channel)
    request = health_pb2.HealthCheckRequest(service=GENERATION)
    leaving, staying = stub.Watch(request), stub.Watch(request)
    for watch in (leaving, staying):
        assert (await watch.read()).status == NOT_SERVING
    leaving.cancel()
    # A round trip later the server has seen the cancellation.
    await health_of(running.channel, "")
    running.server.set_serving(True)
    assert (await staying.read()).status == SERVING
    await running.server.drain(grace_s=0)
    assert (await staying.read()).status == NOT_SERVING
    assert await staying.read() is grpc.aio.EOF


async def test_a_watch_of_an_unknown_service_says_so(running: Running) -> None:
    stub: Any = health_pb2_grpc.HealthStub(running.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
    assert (await watch.read()).status == UNKNOWN
    watch.cancel()


async def test_a_stock_reflection_client_finds_the_services_and_their_messages(
    running: Running,
) -> None:
    def look() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            service = DescriptorPool(database).FindServiceByName(GENERATION)
            return list(database.get_services()), [method.name for method in service.methods]

    services, methods = await asyncio.to_thread(look)
    assert {GENERATION, "grpc.health.v1.Health"} <= set(services)
    assert methods == ["GenerateImage"]


async def test_a_taken_port_is_an_error(running: Running) -> None:
    second = GrpcServer(f"127.0.0.1:{running.port}", [], grace_s=0)
    with pytest.raises(OSError, match=f"127.0.0.1:{running.port}"):
        await second.start()


async def test_a_request_of_more_than_four_mebibytes_is_taken(running: Running) -> None:
    async for _ in running.stub.GenerateImage(Request(prompt="x" * (5 * 2**20))):
        pass
    assert len(running.generation.requests) == 1


async def test_a_drain_lets_calls_finish_and_refuses_new_ones_with_a_reason(
    running: Running,
) -> None:
    release = asyncio.Event()

    async def until_released(request: Any) -> AsyncGenerator[Any, None]:
        yield Response()
        await release.wait()
        yield Response()

    running.generation.script = until_released
    running.server.set_serving(True)
    call = running.stub.GenerateImage(Request())
    await call.read()
    drain = asyncio.create_task(running.server.drain(grace_s=60))
    await asyncio.sleep(0)

    assert await health_of(running.channel, GENERATION) == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.GenerateImage(Request()).read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == "SHUTTING_DOWN"
    running.server.set_serving(True)
    assert await health_of(running.channel, GENERATION) == NOT_SERVING
    assert not drain.done()

    release.set()
    assert await remaining(call) == [Response()]
    await drain
    assert await call.code() is grpc.StatusCode.OK


async def test_a_call_longer_than_the_grace_is_cancelled_settles_and_says_why(
    running: Running,
) -> None:
    settled = False

    async def for_ever(request: Any) -> AsyncGenerator[Any, None]:
        nonlocal settled
        yield Response()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            settled = True

    running.generation.script = for_ever
    call = running.stub.GenerateImage(Request())
    await call.read()
    await running.server.drain(grace_s=0.05)
    assert settled
    assert running.server.in_flight == 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == "SHUTTING_DOWN"


async def test_a_grace_that_is_cut_ends_at_once(running: Running) -> None:
    async def for_ever(request: Any) -> AsyncGenerator[Any, None]:
        yield Response()
        await asyncio.Event().wait()

    running.generation.script = for_ever
    call = running.stub.GenerateImage(Request())
    await call.read()
    drain = asyncio.create_task(running.server.drain(grace_s=3600))
    await asyncio.sleep(0)
    running.server.cut_grace()
    await drain
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()


async def test_two_servers_live_in_one_process(start: Start) -> None:
    first, second = await start(), await start()
    async for _ in first.stub.GenerateImage(Request()):
        pass
    assert len(first.generation.requests) == 1
    assert not second.generation.requests


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any]]:
    """A drained process and a stub of it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.runtime.drained_process", *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        port = int(await child.stdout.readline())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield child, generation_pb2_grpc.GenerationServiceStub(channel)
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def test_a_terminated_process_finishes_its_stream_refuses_new_calls_and_exits_with_0() -> (
    None
):
    async with process("60") as (child, stub):
        call = stub.GenerateImage(Request(step_count=40))
        await call.read()
        child.terminate()
        refusal = await refused(lambda: stub.GenerateImage(Request(step_count=1)).read())
        assert refusal.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(refusal) == "SHUTTING_DOWN"
        assert len(await remaining(call)) == 39
        assert await call.code() is grpc.StatusCode.OK
        assert await child.wait() == 0


async def test_a_terminated_process_cancels_a_call_longer_than_the_grace_and_exits_with_0() -> None:
    async with process("0.2") as (child, stub):
        call = stub.GenerateImage(Request(step_count=100_000))
        await call.read()
        child.terminate()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await remaining(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(caught.value) == "SHUTTING_DOWN"
        assert await child.wait() == 0


async def test_a_second_signal_ends_the_grace() -> None:
    async with process("3600") as (child, stub):
        call = stub.GenerateImage(Request(step_count=100_000))
        await call.read()
        child.terminate()
        await refused(lambda: stub.GenerateImage(Request(step_count=1)).read())
        child.terminate()
        assert await child.wait() == 0


async def test_a_failed_device_ends_the_process_with_1() -> None:
    async with process("3600", "fail") as (child, stub):
        call = stub.GenerateImage(Request(step_count=100_000))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await child.wait() == 1


async def remaining(call: Any) -> list[Any]:
    """Read to the end a call that `read` has begun, which forbids `async for`."""
    responses = []
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)
    return responses


async def refused(call: Callable[[], Awaitable[object]]) -> grpc.aio.AioRpcError:
    """Call until the process, which may not have seen its signal yet, refuses."""
    for _ in range(100):
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            return error
        await asyncio.sleep(0.005)
    pytest.fail("the process refused nothing")
