"""What handlers add to the metadata of their answers, and where it goes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
import pytest

from services.runtime.context import response_metadata
from services.runtime.errors import FieldViolation, InvalidRequestError, QueueFullError
from tests.runtime.conftest import KINDS, Request, Response, Running, Start, kinds_service


def add() -> None:
    response_metadata().trailing.append(("x-at-last", "2"))


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


async def test_a_stream_ends_with_what_was_added(running: Running) -> None:
    async def answer(request: Any) -> AsyncGenerator[Any, None]:
        add()
        yield Response()

    running.generation.script = answer
    for number in range(2):  # nothing of one call is left for the next
        call = running.stub.GenerateImage(Request(), metadata=[("x-request-id", f"r{number}")])
        assert len([event async for event in call]) == 1
        assert not await call.initial_metadata()
        told = list(await call.trailing_metadata())
        assert told == [("x-request-id", f"r{number}"), ("x-at-last", "2")]


async def test_a_single_answer_carries_it_too(start: Start) -> None:
    async def answer(request: bytes) -> bytes:
        add()
        return request

    running = await start(extra=[kinds_service(answer)])
    call = running.channel.unary_unary(f"/{KINDS}/UnaryUnary")(b"")
    await call
    assert dict(await call.trailing_metadata())["x-at-last"] == "2"


@pytest.mark.parametrize("first", [(), (Response(),)])
async def test_a_failure_carries_it_too(running: Running, first: Sequence[Any]) -> None:
    async def refuse(request: Any) -> AsyncGenerator[Any, None]:
        add()
        for response in first:
            yield response
        raise QueueFullError(1)

    running.generation.script = refuse
    error = await failure_of(running.stub.GenerateImage(Request()))
    assert not error.initial_metadata()
    assert list(error.trailing_metadata()).count(("x-at-last", "2")) == 1


async def test_details_that_fill_the_trailers_are_worth_more(running: Running) -> None:
    """A client drops a call whose trailers exceed 8 kB."""

    async def refuse(request: Any) -> AsyncGenerator[Any, None]:
        for number in range(80):
            response_metadata().trailing.append((f"x-ratelimit-remaining-number-{number}", "1234"))
        raise InvalidRequestError(
            [FieldViolation(field="f" * 300, reason="R" * 300, description="ü" * 300)] * 40
        )
        yield

    running.generation.script = refuse
    error = await failure_of(running.stub.GenerateImage(Request()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    trailers = dict(error.trailing_metadata())
    assert "grpc-status-details-bin" in trailers
    assert not any(name.startswith("x-ratelimit") for name in trailers)
