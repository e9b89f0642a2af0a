from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import (
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidRequestError,
    LimnerError,
    ModelNotFoundError,
    QueueFullError,
    RelayedError,
    UnauthenticatedError,
    UnavailableError,
    clip,
    from_rpc_error,
)
from services.runtime.status import wire_status
from tests.runtime.conftest import Request, Response, Running, Start

WIDTH = FieldViolation(field="width", reason="NOT_A_MULTIPLE", description="must be 8 × n")
STEPS = FieldViolation(field="step_count", reason="OUT_OF_RANGE", description="must be 1 to 150")


def raising(error: LimnerError) -> Any:
    async def script(request: Any) -> AsyncGenerator[Any, None]:
        raise error
        yield

    return script


async def refusal(running: Running, error: LimnerError) -> grpc.aio.AioRpcError:
    running.generation.script = raising(error)
    call = running.stub.GenerateImage(Request(), metadata=[("x-request-id", "r-1")])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return caught.value


def status_of(error: grpc.aio.AioRpcError) -> Any:
    return status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])


def unpacked(status: Any, message: Any) -> Any:
    [packed] = [detail for detail in status.details if detail.Is(message.DESCRIPTOR)]
    packed.Unpack(message)
    return message


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (InvalidRequestError([WIDTH]), "INVALID_ARGUMENT", "INVALID_REQUEST"),
        (ModelNotFoundError("sd9", ["sd15"]), "NOT_FOUND", "MODEL_NOT_FOUND"),
        (UnauthenticatedError("no key", reason="KEY_MISSING"), "UNAUTHENTICATED", "KEY_MISSING"),
        (QueueFullError(1.5), "RESOURCE_EXHAUSTED", "QUEUE_FULL"),
        (UnavailableError(reason="NO_BACKEND"), "UNAVAILABLE", "NO_BACKEND"),
        (DeadlineExceededError(), "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        (InternalError(), "INTERNAL", "INTERNAL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, LimnerError) else None,
)
async def test_every_error_arrives_with_its_code_reason_and_request_id(
    running: Running, error: LimnerError, code: str, reason: str
) -> None:
    failure = await refusal(running, error)
    status = status_of(failure)
    info = unpacked(status, error_details_pb2.ErrorInfo())
    assert failure.code() is grpc.StatusCode[code]
    assert status.code == failure.code().value[0]
    assert failure.details() == status.message == error.message
    assert (info.reason, info.domain) == (reason, "limner")
    assert info.metadata["request_id"] == "r-1"


async def test_an_invalid_request_lists_every_violation(running: Running) -> None:
    failure = await refusal(running, InvalidRequestError([WIDTH, STEPS]))
    listed = unpacked(status_of(failure), error_details_pb2.BadRequest()).field_violations
    assert [
        FieldViolation(field=v.field, reason=v.reason, description=v.description) for v in listed
    ] == [WIDTH, STEPS]


async def test_so_many_violations_still_arrive_and_the_rest_is_counted(running: Running) -> None:
    violations = [
        FieldViolation(field=f"参数[{index}]", reason="TOO_LONG", description="é" * 500)
        for index in range(1000)
    ]
    failure = await refusal(running, InvalidRequestError(violations))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    *listed, last = unpacked(status_of(failure), error_details_pb2.BadRequest()).field_violations
    assert len(listed) >= 4
    assert [violation.field for violation in listed] == [
        violation.field for violation in violations[: len(listed)]
    ]
    assert (last.reason, last.description) == (
        "TRUNCATED",
        f"{1000 - len(listed)} further violations are not listed",
    )


@given(
    violations=st.lists(
        st.builds(FieldViolation, field=st.text(), reason=st.text(), description=st.text()),
        min_size=1,
        max_size=200,
    ),
)
def test_a_status_stays_under_8_kb_on_the_wire(violations: list[FieldViolation]) -> None:
    status = wire_status(InvalidRequestError(violations), "r" * 128)
    encoded = status.message.encode()
    message_bytes = sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in encoded)
    trailer_bytes = sum(
        len(key) + 32 + (len(value) if isinstance(value, str) else -(-len(value) // 3) * 4)
        for key, value in status.trailers
    )
    assert message_bytes + trailer_bytes < 8000


async def test_a_missing_model_names_what_exists(running: Running) -> None:
    failure = await refusal(running, ModelNotFoundError("sd9", ["sdxl", "sd15"]))
    assert failure.details() == "No model 'sd9'; there is: sd15, sdxl."
    info = unpacked(status_of(failure), error_details_pb2.ErrorInfo())
    assert info.metadata["known"] == "sd15, sdxl"


async def test_a_full_queue_says_when_to_come_back(running: Running) -> None:
    failure = await refusal(running, QueueFullError(retry_after_s=1.2501))
    retry = unpacked(status_of(failure), error_details_pb2.RetryInfo())
    assert retry.retry_delay.ToMilliseconds() == 1251
    assert dict(failure.trailing_metadata())["grpc-retry-pushback-ms"] == "1251"


@pytest.mark.parametrize("retry_after_s", [-1, float("nan"), float("inf")])
def test_a_retry_time_that_is_none_is_our_own_mistake(retry_after_s: float) -> None:
    with pytest.raises(ValueError, match="retry_after_s"):
        QueueFullError(retry_after_s)


async def test_a_backends_refusal_is_relayed_unchanged(start: Start) -> None:
    backend, gateway = await start(), await start()

    async def relay(request: Any) -> AsyncGenerator[Any, None]:
        try:
            async for response in backend.stub.GenerateImage(request):
                yield response
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    backend.generation.script = raising(QueueFullError(retry_after_s=3))
    gateway.generation.script = relay
    with pytest.raises(grpc.aio.AioRpcError) as direct:
        await backend.stub.GenerateImage(Request()).read()
    with pytest.raises(grpc.aio.AioRpcError) as relayed:
        await gateway.stub.GenerateImage(Request()).read()

    def visible(error: grpc.aio.AioRpcError) -> Any:
        trailers = dict(error.trailing_metadata())
        status = status_of(error)
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                info.metadata.pop("request_id")
                detail.Pack(info)
        return error.code(), error.details(), trailers["grpc-retry-pushback-ms"], status

    assert visible(relayed.value) == visible(direct.value)


async def test_a_lost_backend_is_told_apart_from_one_that_refuses(start: Start) -> None:
    backend = await start()

    async def for_ever(request: Any) -> AsyncGenerator[Any, None]:
        while True:
            yield Response()

    backend.generation.script = for_ever
    await backend.server.drain(grace_s=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await backend.stub.GenerateImage(Request()).read()
    error = from_rpc_error(caught.value)
    assert isinstance(error, UnavailableError)
    assert error.reason == "BACKEND_LOST"


async def test_a_transport_error_keeps_its_code(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.channel.unary_unary("/limner.v1.GenerationService/Invented")(b"")
    error = from_rpc_error(caught.value)
    assert isinstance(error, RelayedError)
    assert error.status_code is grpc.StatusCode.UNIMPLEMENTED
    assert wire_status(error, "r").code is grpc.StatusCode.UNIMPLEMENTED


@given(text=st.text(), size_bytes=st.integers(3, 40))
def test_a_clipped_text_fits_and_keeps_its_beginning(text: str, size_bytes: int) -> None:
    clipped = clip(text, size_bytes)
    assert len(clipped.encode()) <= size_bytes
    assert text.startswith(clipped.removesuffix("…"))
