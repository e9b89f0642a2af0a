"""The events of one running call, read with asyncio; made by `AsyncClient`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

import grpc

from limner.v1 import generation_pb2, upscale_pb2
from services.client.errors import Cancelled, Failure, decode_error
from services.client.event_reader import Reader
from services.client.events import Event
from services.client.retry import Attempts
from services.client.upscale_events import UpscaleEvent

_Response = TypeVar("_Response")
_Event = TypeVar("_Event")


class AsyncEventStream(Generic[_Response, _Event]):
    """The events of one call: an asynchronous iterator and context manager.

    Leaving the `async with` block, `close()`, or cancelling the task that iterates cancels the
    call, which soon frees the device. An iteration that was closed raises Cancelled.
    """

    def __init__(
        self,
        start: Callable[[float | None], grpc.aio.UnaryStreamCall[Any, _Response]],
        attempts: Attempts,
        reader: Reader[_Response, _Event],
    ) -> None:
        self._start = start
        self._attempts = attempts
        self._reader = reader
        self._answered = False
        self._closed = asyncio.Event()
        self._call = start(attempts.remaining_s())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Event:
        """Wait for the next event. Raises LimnerError when the call fails."""
        while True:
            try:
                response = await self._call.read()
            except grpc.aio.AioRpcError as failure:
                await self._restart_after(failure)
                continue
            except asyncio.CancelledError:
                self._raise_if_closed()
                raise
            if response is grpc.aio.EOF:
                self._reader.finish()
                raise StopAsyncIteration
            self._answered = True
            event = self._reader.read(cast(_Response, response))
            if event is not None:
                return event

    def close(self) -> None:
        """Cancel the call unless it is over."""
        self._closed.set()
        self._call.cancel()

    async def _restart_after(self, failure: grpc.aio.AioRpcError) -> None:
        error = decode_error(failure)
        delay_s = self._attempts.delay_s(error, answered=self._answered)
        try:
            async with asyncio.timeout(delay_s):
                await self._closed.wait()
        except TimeoutError:
            self._call = self._start(self._attempts.remaining_s())
        else:
            raise error from failure

    def _raise_if_closed(self) -> None:
        """Raise Cancelled for a stream that was closed; grpc reports that like a cancelled task."""
        task = asyncio.current_task()
        if self._closed.is_set() and not (task and task.cancelling()):
            failure = Failure(code=grpc.StatusCode.CANCELLED, message="the stream was closed")
            raise Cancelled(failure) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncGenerationStream(AsyncEventStream[generation_pb2.GenerateImageResponse, Event]):
    """The events of one generation; closing frees the device within one denoising step."""


class AsyncUpscaleStream(AsyncEventStream[upscale_pb2.UpscaleImageResponse, UpscaleEvent]):
    """The events of one upscaling; closing frees the device within one batch of tiles."""
