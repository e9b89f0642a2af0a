from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest

from services.runtime.context import Identity, Metadata, current_request
from services.runtime.errors import InternalError, QueueFullError, UnauthenticatedError
from services.runtime.logs import add_request_id, new_formatter
from tests.runtime.conftest import (
    GENERATION,
    KINDS,
    Request,
    Response,
    Running,
    Start,
    kinds_service,
    one_event,
)

METHOD = {"grpc_service": GENERATION, "grpc_method": "GenerateImage", "grpc_type": "server_stream"}


async def refuse(request: Any) -> AsyncGenerator[Any, None]:
    raise QueueFullError(retry_after_s=2)
    yield


async def fail(request: Any) -> AsyncGenerator[Any, None]:
    raise ZeroDivisionError("the secret of the house")
    yield


async def wait_for_ever(request: Any) -> AsyncGenerator[Any, None]:
    yield Response()
    await asyncio.Event().wait()


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


async def test_a_request_id_is_made_and_returned(running: Running) -> None:
    call = running.stub.GenerateImage(Request())
    [response] = [response async for response in call]
    sent = dict(await call.trailing_metadata())["x-request-id"]
    assert len(sent) == 32
    assert response.accepted.request_id == sent


async def test_a_usable_request_id_of_the_caller_is_kept(running: Running) -> None:
    call = running.stub.GenerateImage(Request(), metadata=[("x-request-id", "mine-1")])
    [response] = [response async for response in call]
    assert response.accepted.request_id == "mine-1"
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-1"


async def test_an_overlong_request_id_is_replaced(running: Running) -> None:
    call = running.stub.GenerateImage(Request(), metadata=[("x-request-id", "x" * 129)])
    [response] = [response async for response in call]
    assert len(response.accepted.request_id) == 32


async def test_a_failed_call_has_its_request_id_in_the_trailers(running: Running) -> None:
    running.generation.script = refuse
    error = await failure_of(
        running.stub.GenerateImage(Request(), metadata=[("x-request-id", "mine-2")])
    )
    assert dict(error.trailing_metadata())["x-request-id"] == "mine-2"
    assert "x-request-id" not in dict(error.initial_metadata())


async def test_account_priority_and_deadline_reach_the_handler(running: Running) -> None:
    before = time.monotonic()
    metadata = [("x-limner-account", "acme"), ("x-limner-priority", "-7")]
    async for _ in running.stub.GenerateImage(Request(), metadata=metadata, timeout=100):
        pass
    [request] = running.generation.requests
    assert (request.account, request.priority) == ("acme", -7)
    assert request.deadline is not None
    # The wire format of a timeout rounds up, by a per cent or so.
    assert before + 100 <= request.deadline < time.monotonic() + 110


async def test_a_caller_who_says_nothing_has_no_account_and_no_deadline(running: Running) -> None:
    async for _ in running.stub.GenerateImage(Request()):
        pass
    [request] = running.generation.requests
    assert (request.account, request.priority, request.deadline) == ("", 0, None)


@pytest.mark.parametrize("priority", ["high", "1001", "1" * 5000, "", "1.5"])
async def test_a_priority_that_is_none_is_refused(running: Running, priority: str) -> None:
    call = running.stub.GenerateImage(Request(), metadata=[("x-limner-priority", priority)])
    error = await failure_of(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not running.generation.requests


async def test_a_queue_share_reaches_the_handler_and_is_whole_otherwise(running: Running) -> None:
    for metadata in ([("x-limner-queue-share", "0.25")], []):
        async for _ in running.stub.GenerateImage(Request(), metadata=metadata):
            pass
    assert [request.queue_share for request in running.generation.requests] == [0.25, 1.0]


@pytest.mark.parametrize("share", ["0", "-0.5", "1.01", "nan", "inf", "", "half", "9" * 5000])
async def test_a_queue_share_that_is_none_is_refused(running: Running, share: str) -> None:
    call = running.stub.GenerateImage(Request(), metadata=[("x-limner-queue-share", share)])
    error = await failure_of(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not running.generation.requests


async def test_the_door_decides_who_calls(start: Start) -> None:
    async def identify(metadata: Metadata) -> Identity:
        if dict(metadata).get("authorization") != "Bearer good":
            raise UnauthenticatedError("no such key", reason="KEY_UNKNOWN")
        return Identity(account="of-the-key")

    running = await start(identify=identify)
    claim = ("x-limner-account", "somebody-else")
    async for _ in running.stub.GenerateImage(
        Request(), metadata=[("authorization", "Bearer good"), claim]
    ):
        pass
    assert [request.account for request in running.generation.requests] == ["of-the-key"]

    error = await failure_of(running.stub.GenerateImage(Request(), metadata=[claim]))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert len(running.generation.requests) == 1


@pytest.mark.parametrize(
    ("name", "grpc_type", "sends", "expected"),
    [
        ("UnaryUnary", "unary", b"a", [b"a!"]),
        ("UnaryStream", "server_stream", b"a", [b"a!", b"a!"]),
        ("StreamUnary", "client_stream", [b"a", b"b"], [b"a+b!"]),
        ("StreamStream", "bidi_stream", [b"a", b"b"], [b"a!", b"b!"]),
    ],
)
async def test_all_four_kinds_are_served_refused_and_counted(
    start: Start, name: str, grpc_type: str, sends: Any, expected: list[bytes]
) -> None:
    async def unary(request: bytes) -> bytes:
        if b"bad" in request:
            raise QueueFullError(retry_after_s=1)
        assert current_request().request_id == "r"
        return request + b"!"

    running = await start(extra=[kinds_service(unary)])
    method = getattr(
        running.channel,
        {
            "unary": "unary_unary",
            "server_stream": "unary_stream",
            "client_stream": "stream_unary",
            "bidi_stream": "stream_stream",
        }[grpc_type],
    )(f"/{KINDS}/{name}")

    async def responses(payload: Any) -> list[bytes]:
        call = method(
            iter(payload) if isinstance(payload, list) else payload,
            metadata=[("x-request-id", "r")],
        )
        if hasattr(call, "__aiter__"):
            received = [response async for response in call]
        else:
            received = [await call]
        assert dict(await call.trailing_metadata())["x-request-id"] == "r"
        return received

    assert await responses(sends) == expected
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await responses([b"bad"] if isinstance(sends, list) else b"bad")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    labels = {"grpc_service": KINDS, "grpc_method": name, "grpc_type": grpc_type}
    assert running.sample("grpc_server_started_total", **labels) == 2
    for code in ("OK", "RESOURCE_EXHAUSTED"):
        assert running.sample("grpc_server_handled_total", **labels, grpc_code=code) == 1
    assert running.sample("grpc_server_handling_seconds_count", **labels) == 2


async def test_a_cancelled_stream_closes_its_handler_and_counts_as_cancelled(
    running: Running,
) -> None:
    running.generation.script = wait_for_ever
    call = running.stub.GenerateImage(Request())
    await call.read()
    assert running.server.in_flight == 1
    call.cancel()
    await running.generation.left.wait()
    await until_idle(running)
    assert running.sample("grpc_server_handled_total", **METHOD, grpc_code="CANCELLED") == 1


async def test_a_stream_cancelled_during_a_write_closes_its_handler_at_once(
    running: Running,
) -> None:
    """A client that does not read fills the window, so that the handler is cancelled in a write."""

    async def flood(request: Any) -> AsyncGenerator[Any, None]:
        while True:
            yield Response(artifact={"data": bytes(2**18)})

    running.generation.script = flood
    call = running.stub.GenerateImage(Request())
    await running.generation.entered.wait()
    await asyncio.sleep(0.2)
    call.cancel()
    await running.generation.left.wait()
    await until_idle(running)
    assert running.sample("grpc_server_handled_total", **METHOD, grpc_code="CANCELLED") == 1


async def test_a_deadline_that_passes_counts_as_deadline_exceeded_or_cancelled(
    running: Running,
) -> None:
    """Whichever of the two clocks is first; the handler is closed in both cases."""
    running.generation.script = wait_for_ever
    error = await failure_of(running.stub.GenerateImage(Request(), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await running.generation.left.wait()
    await until_idle(running)
    counts = [
        running.sample("grpc_server_handled_total", **METHOD, grpc_code=code)
        for code in ("DEADLINE_EXCEEDED", "CANCELLED")
    ]
    assert sorted(count or 0 for count in counts) == [0, 1]


async def test_an_unexpected_error_is_internal_and_its_traceback_stays_in_the_log(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.generation.script = fail
    error = await failure_of(running.stub.GenerateImage(Request()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == InternalError().message
    assert b"secret" not in dict(error.trailing_metadata())["grpc-status-details-bin"]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert running.sample("grpc_server_handled_total", **METHOD, grpc_code="INTERNAL") == 1


async def test_a_stray_cancellation_in_a_handler_is_internal_and_not_a_hang(
    running: Running,
) -> None:
    async def await_a_cancelled_future(request: Any) -> AsyncGenerator[Any, None]:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future
        yield

    running.generation.script = await_a_cancelled_future
    error = await failure_of(running.stub.GenerateImage(Request(), timeout=30))
    assert error.code() is grpc.StatusCode.INTERNAL


async def test_an_error_out_of_a_task_group_is_mapped_as_itself(running: Running) -> None:
    async def in_a_group(request: Any) -> AsyncGenerator[Any, None]:
        async def work() -> None:
            raise QueueFullError(retry_after_s=1)

        async with asyncio.TaskGroup() as group:
            group.create_task(work())
        yield

    running.generation.script = in_a_group
    error = await failure_of(running.stub.GenerateImage(Request()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_error_after_the_first_event_is_mapped_too(running: Running) -> None:
    async def late(request: Any) -> AsyncGenerator[Any, None]:
        yield Response()
        raise QueueFullError(retry_after_s=1)

    running.generation.script = late
    error = await failure_of(running.stub.GenerateImage(Request()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc-status-details-bin" in dict(error.trailing_metadata())


async def test_an_unknown_method_is_unimplemented_and_makes_no_label(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.channel.unary_unary("/limner.v1.GenerationService/Invented")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    labels = [sample.labels for family in running.registry.collect() for sample in family.samples]
    assert not any("Invented" in label.values() for label in labels)


async def test_a_call_leaves_one_json_line_without_its_payload(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    running.generation.script = one_event
    async for _ in running.stub.GenerateImage(
        Request(prompt="a very private prompt"),
        metadata=[
            ("x-request-id", "r-1"),
            ("x-limner-account", "acme"),
            ("authorization", "Bearer lmn_live_secret"),
        ],
    ):
        pass
    await until_idle(running)
    [record] = [record for record in caplog.records if record.name == "limner.access"]
    add_request_id(record)
    text = new_formatter().format(record)
    assert "\n" not in text
    assert "private" not in text
    assert "secret" not in text
    line = json.loads(text)
    assert line.pop("duration_ms") >= 0
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "limner.access",
        "message": "call",
        "method": f"/{GENERATION}/GenerateImage",
        "code": "OK",
        "request_id": "r-1",
        "account": "acme",
    }


async def until_idle(running: Running) -> None:
    """The client may be done before the server has counted the call."""
    for _ in range(6000):
        if not running.server.in_flight:
            return
        await asyncio.sleep(0.005)
    pytest.fail("the call is still in flight")
