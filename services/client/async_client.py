"""The asyncio client.

Belongs to the event loop that first uses it. Parsing, errors and retries are those of `Client`;
only the waiting differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import grpc

from limner.v1 import (
    account_pb2,
    account_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from services.client.catalog import Account, Model, read_account, read_models
from services.client.endpoint import resolve_endpoint
from services.client.errors import Cancelled, Failure, decode_error
from services.client.event_reader import EventReader, ResultCollector
from services.client.events import Event, GenerationResult, Progress
from services.client.request import GenerateOptions, build_request
from services.client.retry import Attempts, RetryPolicy

if TYPE_CHECKING:
    _Call = grpc.aio.UnaryStreamCall[
        generation_pb2.GenerateImageRequest, generation_pb2.GenerateImageResponse
    ]

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class AsyncGenerationStream:
    """The events of one generation: an asynchronous iterator and context manager.

    Leaving the `async with` block, `close()`, or cancelling the task that iterates cancels the
    call, which frees the device within one denoising step. An iteration that was closed raises
    Cancelled.
    """

    def __init__(self, start: Callable[[float | None], _Call], attempts: Attempts) -> None:
        self._start = start
        self._attempts = attempts
        self._reader = EventReader()
        self._answered = False
        self._closed = asyncio.Event()
        self._call = start(attempts.remaining_s())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event. Raises LimnerError when the generation fails."""
        while True:
            try:
                response = await self._call.read()
            except grpc.aio.AioRpcError as failure:
                await self._restart_after(failure)
                continue
            except asyncio.CancelledError:
                self._raise_if_closed()
                raise
            if not isinstance(response, generation_pb2.GenerateImageResponse):  # the end
                self._reader.finish()
                raise StopAsyncIteration
            self._answered = True
            event = self._reader.read(response)
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
            await asyncio.wait_for(self._closed.wait(), delay_s)
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


class AsyncClient:
    """Talks to a Limner server from asyncio; the arguments are those of `Client`."""

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._endpoint = resolve_endpoint(
            address=address, api_key=api_key, tls=tls, credentials=credentials
        )
        self.address = self._endpoint.address
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()

    async def generate(
        self,
        prompt: str,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationResult:
        """Draw a prompt and wait for the pictures; `GenerateOptions` lists the options.

        Raises LimnerError, and ValueError for an unknown sampler or format.
        """
        collector = ResultCollector(on_progress)
        async with self.stream_generate(prompt, timeout_s=timeout_s, **options) as stream:
            async for event in stream:
                collector.add(event)
        return collector.result()

    def stream_generate(
        self, prompt: str, *, timeout_s: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerationStream:
        """Draw a prompt and report on the way; use it in an `async with` block.

        The events are those of `Client.stream_generate`. Raises ValueError at once for an unknown
        sampler or format; the iteration raises LimnerError.
        """
        request = build_request(prompt, **options)
        method = generation_pb2_grpc.GenerationServiceStub(self._channel).GenerateImage
        metadata = self._endpoint.metadata
        return AsyncGenerationStream(
            lambda timeout: method(request, timeout=timeout, metadata=metadata),
            self._attempts(timeout_s),
        )

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """Return the models, sorted by name. Raises LimnerError."""
        method = model_pb2_grpc.ModelServiceStub(self._channel).ListModels
        return read_models(await self._call(method, model_pb2.ListModelsRequest(), timeout_s))

    async def account(self, *, timeout_s: float | None = None) -> Account:
        """Return the account behind the key; only a gateway knows it. Raises LimnerError."""
        method = account_pb2_grpc.AccountServiceStub(self._channel).GetAccount
        return read_account(await self._call(method, account_pb2.GetAccountRequest(), timeout_s))

    async def close(self) -> None:
        """Close the connection and cancel what still runs on it."""
        await self._channel.close()

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        """The connection; made on first use, which is inside the event loop."""
        endpoint = self._endpoint
        if endpoint.credentials is None:
            return grpc.aio.insecure_channel(endpoint.address, endpoint.options)
        return grpc.aio.secure_channel(endpoint.address, endpoint.credentials, endpoint.options)

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout_s: float | None,
    ) -> _Response:
        attempts = self._attempts(timeout_s)
        while True:
            try:
                return await method(
                    request, timeout=attempts.remaining_s(), metadata=self._endpoint.metadata
                )
            except grpc.aio.AioRpcError as failure:
                delay_s = attempts.delay_s(decode_error(failure), answered=False)
                await asyncio.sleep(delay_s)

    def _attempts(self, timeout_s: float | None) -> Attempts:
        return Attempts(self._retry, self._timeout_s if timeout_s is None else timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
