"""The synchronous client.

Safe to share between threads. Parsing, errors and retries are those of `AsyncClient`; only the
waiting differs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TypeVar, Unpack

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
from services.client.errors import decode_error
from services.client.event_reader import EventReader, ResultCollector
from services.client.events import Event, GenerationResult, Progress
from services.client.request import GenerateOptions, build_request
from services.client.retry import Attempts, RetryPolicy

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class _Call(Protocol):
    """What is used of a running grpc call."""

    def __next__(self) -> generation_pb2.GenerateImageResponse: ...

    def cancel(self) -> object:
        """End the call."""


class GenerationStream:
    """The events of one generation: an iterator and a context manager.

    Leaving the `with` block, or `close()` from any thread, cancels the call, which frees the
    device within one denoising step. An iteration that was closed raises Cancelled.
    """

    def __init__(self, start: Callable[[float | None], _Call], attempts: Attempts) -> None:
        self._start = start
        self._attempts = attempts
        self._reader = EventReader()
        self._answered = False
        self._closed = threading.Event()
        self._call = start(attempts.remaining_s())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """Wait for the next event. Raises LimnerError when the generation fails."""
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


class Client:
    """Talks to a Limner server: the gateway, or a diffusion server directly.

    `address` is `host:port`; None reads LIMNER_ADDRESS, else 127.0.0.1:50051. `api_key` None reads
    LIMNER_API_KEY. `tls=True` trusts the system's authorities; `credentials` sets others.
    `timeout_s` bounds every call, its retries included; None waits as long as it takes.

    Raises ValueError for a key that cannot be sent.
    """

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
        endpoint = resolve_endpoint(
            address=address, api_key=api_key, tls=tls, credentials=credentials
        )
        self.address = endpoint.address
        self._metadata = endpoint.metadata
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        if endpoint.credentials is None:
            self._channel = grpc.insecure_channel(endpoint.address, endpoint.options)
        else:
            self._channel = grpc.secure_channel(
                endpoint.address, endpoint.credentials, endpoint.options
            )

    def generate(
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
        with self.stream_generate(prompt, timeout_s=timeout_s, **options) as stream:
            for event in stream:
                collector.add(event)
        return collector.result()

    def stream_generate(
        self, prompt: str, *, timeout_s: float | None = None, **options: Unpack[GenerateOptions]
    ) -> GenerationStream:
        """Draw a prompt and report on the way; use it in a `with` block.

        Yields Accepted first, then Queued, Progress, Preview (with `preview_interval`) and one
        GeneratedImage a picture. Raises ValueError at once for an unknown sampler or format; the
        iteration raises LimnerError.
        """
        request = build_request(prompt, **options)
        method = generation_pb2_grpc.GenerationServiceStub(self._channel).GenerateImage
        return GenerationStream(
            lambda timeout: method(request, timeout=timeout, metadata=self._metadata),
            self._attempts(timeout_s),
        )

    def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """Return the models, sorted by name. Raises LimnerError."""
        method = model_pb2_grpc.ModelServiceStub(self._channel).ListModels
        return read_models(self._call(method, model_pb2.ListModelsRequest(), timeout_s))

    def account(self, *, timeout_s: float | None = None) -> Account:
        """Return the account behind the key; only a gateway knows it. Raises LimnerError."""
        method = account_pb2_grpc.AccountServiceStub(self._channel).GetAccount
        return read_account(self._call(method, account_pb2.GetAccountRequest(), timeout_s))

    def close(self) -> None:
        """Close the connection and cancel what still runs on it."""
        self._channel.close()

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout_s: float | None,
    ) -> _Response:
        attempts = self._attempts(timeout_s)
        while True:
            try:
                return method(request, timeout=attempts.remaining_s(), metadata=self._metadata)
            except grpc.RpcError as failure:
                delay_s = attempts.delay_s(decode_error(failure), answered=False)
                time.sleep(delay_s)

    def _attempts(self, timeout_s: float | None) -> Attempts:
        return Attempts(self._retry, self._timeout_s if timeout_s is None else timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
