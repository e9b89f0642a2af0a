"""The events of one running call, read synchronously; made by `Client`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import grpc

from limner.v1 import generation_pb2, upscale_pb2
from services.client.errors import decode_error
from services.client.event_reader import Reader
from services.client.events import Event
from services.client.retry import Attempts
from services.client.upscale_events import UpscaleEvent

_Response = TypeVar("_Response")
_Response_co = TypeVar("_Response_co", covariant=True)
_Event = TypeVar("_Event")


class Call(Protocol[_Response_co]):
    """What is used of a running grpc call."""

    def __next__(self) -> _Response_co: ...

    def cancel(self) -> object:
        """End the call."""


class EventStream(Generic[_Response, _Event]):
    """The events of one call: an iterator and a context manager.

    Leaving the `with` block, or `close()` from any thread, cancels the call, which soon frees the
    device. An iteration that was closed raises Cancelled.
    """

    def __init__(
        self,
        start: Callable[[float | None], Call[_Response]],
        attempts: Attempts,
        reader: Reader[_Response, _Event],
    ) -> None:
        self._start = start
        self._attempts = attempts
        self._reader = reader
        self._answered = False
        self._closed = threading.Event()
        self._call = start(attempts.remaining_s())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Event:
        """Wait for the next event. Raises LimnerError when the call fails."""
        while True:
            try:
                response = next(self._call)
            except StopIteration:
                self._reader.finish()
                raise
            except grpc.RpcError as failure:
                self._restart_after(failure)
                continue
            self._answered = True
            event = self._reader.read(response)
            if event is not None:
                return event

    def close(self) -> None:
        """Cancel the call unless it is over."""
        self._closed.set()
        self._call.cancel()

    def _restart_after(self, failure: grpc.RpcError) -> None:
        error = decode_error(failure)
        delay_s = self._attempts.delay_s(error, answered=self._answered)
        if self._closed.wait(delay_s):
            raise error from failure
        self._call = self._start(self._attempts.remaining_s())
        if self._closed.is_set():
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class GenerationStream(EventStream[generation_pb2.GenerateImageResponse, Event]):
    """The events of one generation; closing frees the device within one denoising step."""


class UpscaleStream(EventStream[upscale_pb2.UpscaleImageResponse, UpscaleEvent]):
    """The events of one upscaling; closing frees the device within one batch of tiles."""
