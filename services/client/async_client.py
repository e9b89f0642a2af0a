"""The asyncio client.

Belongs to the event loop that first uses it. Parsing, errors and retries are those of `Client`;
only the waiting differs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from limner.v1 import (
    account_pb2,
    account_pb2_grpc,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    upscale_pb2_grpc,
)
from services.client.accounts import Usage, read_usage, watch_request
from services.client.async_stream import AsyncGenerationStream, AsyncUpscaleStream
from services.client.async_trainings import AsyncTrainings
from services.client.catalog import Account, Model, read_account, read_models
from services.client.endpoint import resolve_endpoint
from services.client.errors import decode_error
from services.client.event_reader import EventReader, ResultCollector
from services.client.events import GenerationResult, Progress
from services.client.request import GenerateOptions, build_request
from services.client.retry import Attempts, RetryPolicy
from services.client.upscale_events import TileProgress, UpscaleResult
from services.client.upscale_request import (
    UpscaleCollector,
    UpscaleOptions,
    UpscaleReader,
    build_upscale_request,
)

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


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
            EventReader(),
        )

    async def upscale(
        self,
        image: bytes | str | os.PathLike[str],
        *,
        on_progress: Callable[[TileProgress], None] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[UpscaleOptions],
    ) -> UpscaleResult:
        """Make a picture larger and wait for it; `UpscaleOptions` lists the options.

        `image` is an encoded picture or the path of one, which is read without the event loop's
        waiting. Raises LimnerError, OSError when the file cannot be read, and ValueError for an
        unknown format.
        """
        data = image if isinstance(image, bytes) else await asyncio.to_thread(_read, image)
        collector = UpscaleCollector(on_progress)
        async with self.stream_upscale(data, timeout_s=timeout_s, **options) as stream:
            async for event in stream:
                collector.add(event)
        return collector.result()

    def stream_upscale(
        self, image: bytes, *, timeout_s: float | None = None, **options: Unpack[UpscaleOptions]
    ) -> AsyncUpscaleStream:
        """Make an encoded picture larger and report on the way; use it in an `async with` block.

        The events are those of `Client.stream_upscale`. Raises ValueError at once for an unknown
        format; the iteration raises LimnerError.
        """
        request = build_upscale_request(image, **options)
        method = upscale_pb2_grpc.UpscaleServiceStub(self._channel).UpscaleImage
        metadata = self._endpoint.metadata
        return AsyncUpscaleStream(
            lambda timeout: method(request, timeout=timeout, metadata=metadata),
            self._attempts(timeout_s),
            UpscaleReader(),
        )

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """Return the models, sorted by name. Raises LimnerError."""
        method = model_pb2_grpc.ModelServiceStub(self._channel).ListModels
        return read_models(await self._call(method, model_pb2.ListModelsRequest(), timeout_s))

    async def account(self, *, timeout_s: float | None = None) -> Account:
        """Return the account behind the key; only a gateway knows it. Raises LimnerError."""
        method = account_pb2_grpc.AccountServiceStub(self._channel).GetAccount
        return read_account(await self._call(method, account_pb2.GetAccountRequest(), timeout_s))

    async def usage(self, period: str = "", *, timeout_s: float | None = None) -> Usage:
        """Return what the account used in a month like `2026-11`, by default this one.

        Raises LimnerError.
        """
        method = account_pb2_grpc.AccountServiceStub(self._channel).GetUsage
        request = account_pb2.GetUsageRequest(period=period)
        return read_usage((await self._call(method, request, timeout_s)).usage)

    async def watch_usage(
        self, *, interval_s: float | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Usage]:
        """Yield what the account uses this month, at once and whenever it changes.

        The server looks every `interval_s` seconds, 1 to 3600, by default 5. Goes on until the
        iterator is closed or the call fails: raises LimnerError. A server that is away meanwhile is
        asked again, as often as the client's policy says.
        """
        method = account_pb2_grpc.AccountServiceStub(self._channel).WatchUsage
        request, attempts = watch_request(interval_s), self._attempts(timeout_s)
        last: Usage | None = None
        while True:
            call = method(request, timeout=attempts.remaining_s(), metadata=self._endpoint.metadata)
            try:
                async for response in call:
                    attempts.succeeded()
                    usage = read_usage(response.usage)
                    if usage != last:
                        last = usage
                        yield usage
                return
            except grpc.aio.AioRpcError as failure:
                delay_s = attempts.delay_s(decode_error(failure), answered=False)
            finally:
                call.cancel()
            await asyncio.sleep(delay_s)

    @property
    def trainings(self) -> AsyncTrainings:
        """Datasets and training jobs of the account."""
        return AsyncTrainings(
            self._channel,
            self._call,
            metadata=self._endpoint.metadata,
            attempts=lambda: self._attempts(None),
        )

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
        timeout_s: float | None = None,
        *,
        repeatable: bool = True,
    ) -> _Response:
        """Make a call, and make it again while that is safe; never when it is not `repeatable`."""
        attempts = self._attempts(timeout_s)
        while True:
            try:
                return await method(
                    request, timeout=attempts.remaining_s(), metadata=self._endpoint.metadata
                )
            except grpc.aio.AioRpcError as failure:
                delay_s = attempts.delay_s(decode_error(failure), answered=not repeatable)
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


def _read(path: str | os.PathLike[str]) -> bytes:
    return Path(path).read_bytes()
