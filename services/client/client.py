"""The synchronous client.

Safe to share between threads. Parsing, errors and retries are those of `AsyncClient`; only the
waiting differs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
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
from services.client.admin import Admin
from services.client.catalog import Account, Model, read_account, read_models
from services.client.endpoint import resolve_endpoint
from services.client.errors import decode_error
from services.client.event_reader import EventReader, ResultCollector
from services.client.events import GenerationResult, Progress
from services.client.request import GenerateOptions, build_request
from services.client.retry import Attempts, RetryPolicy
from services.client.stream import GenerationStream, UpscaleStream
from services.client.trainings import Trainings
from services.client.upscale_events import TileProgress, UpscaleResult
from services.client.upscale_request import (
    UpscaleCollector,
    UpscaleOptions,
    UpscaleReader,
    build_upscale_request,
)

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_CLOSE_TIMEOUT_S = 5.0


class Client:
    """Talks to a Limner server: the gateway, or a diffusion server directly.

    `address` is `host:port`; None reads LIMNER_ADDRESS, else 127.0.0.1:50051. `api_key` None reads
    LIMNER_API_KEY. `tls=True` trusts the system's authorities; `credentials` sets others.
    `timeout_s` bounds every call, its retries included; None waits as long as it takes.

    Raises ArgumentError for an address that is none, and for a key that cannot be sent.
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
            EventReader(),
        )

    def upscale(
        self,
        image: bytes | str | os.PathLike[str],
        *,
        on_progress: Callable[[TileProgress], None] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[UpscaleOptions],
    ) -> UpscaleResult:
        """Make a picture larger and wait for it; `UpscaleOptions` lists the options.

        `image` is an encoded picture or the path of one. Raises LimnerError, OSError when the file
        cannot be read, and ValueError for an unknown format.
        """
        collector = UpscaleCollector(on_progress)
        with self.stream_upscale(image, timeout_s=timeout_s, **options) as stream:
            for event in stream:
                collector.add(event)
        return collector.result()

    def stream_upscale(
        self,
        image: bytes | str | os.PathLike[str],
        *,
        timeout_s: float | None = None,
        **options: Unpack[UpscaleOptions],
    ) -> UpscaleStream:
        """Make a picture larger and report on the way; use it in a `with` block.

        Yields UpscaleAccepted first, then Queued, TileProgress and one UpscaledImage. Raises
        OSError and ValueError at once, as `upscale` does; the iteration raises LimnerError.
        """
        request = build_upscale_request(image, **options)
        method = upscale_pb2_grpc.UpscaleServiceStub(self._channel).UpscaleImage
        return UpscaleStream(
            lambda timeout: method(request, timeout=timeout, metadata=self._metadata),
            self._attempts(timeout_s),
            UpscaleReader(),
        )

    def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """Return the models, sorted by name. Raises LimnerError."""
        method = model_pb2_grpc.ModelServiceStub(self._channel).ListModels
        return read_models(self._call(method, model_pb2.ListModelsRequest(), timeout_s))

    def account(self, *, timeout_s: float | None = None) -> Account:
        """Return the account behind the key; only a gateway knows it. Raises LimnerError."""
        method = account_pb2_grpc.AccountServiceStub(self._channel).GetAccount
        return read_account(self._call(method, account_pb2.GetAccountRequest(), timeout_s))

    def usage(self, period: str = "", *, timeout_s: float | None = None) -> Usage:
        """Return what the account used in a month like `2026-11`, by default this one.

        Raises LimnerError.
        """
        method = account_pb2_grpc.AccountServiceStub(self._channel).GetUsage
        request = account_pb2.GetUsageRequest(period=period)
        return read_usage(self._call(method, request, timeout_s).usage)

    def watch_usage(
        self, *, interval_s: float | None = None, timeout_s: float | None = None
    ) -> Iterator[Usage]:
        """Yield what the account uses this month, at once and whenever it changes.

        The server looks every `interval_s` seconds, 1 to 3600, by default 5. Goes on until the
        iterator is closed or the call fails: raises LimnerError. A server that is away meanwhile is
        asked again, as often as the client's policy says.
        """
        method = account_pb2_grpc.AccountServiceStub(self._channel).WatchUsage
        request, attempts = watch_request(interval_s), self._attempts(timeout_s)
        last: Usage | None = None
        while True:
            call = method(request, timeout=attempts.remaining_s(), metadata=self._metadata)
            try:
                for response in call:
                    attempts.succeeded()
                    usage = read_usage(response.usage)
                    if usage != last:
                        last = usage
                        yield usage
                return
            except grpc.RpcError as failure:
                delay_s = attempts.delay_s(decode_error(failure), answered=False)
            finally:
                call.cancel()
            time.sleep(delay_s)

    @property
    def admin(self) -> Admin:
        """Accounts, keys and tiers of a gateway; needs a key with the scope `admin`."""
        return Admin(self._channel, self._call)

    @property
    def trainings(self) -> Trainings:
        """Datasets and training jobs of the account."""
        return Trainings(
            self._channel,
            self._call,
            metadata=self._metadata,
            attempts=lambda: self._attempts(None),
        )

    def close(self) -> None:
        """Close the connection and cancel what still runs on it."""
        # An interrupt between the start of a call and that of grpc's thread for it leaves a call
        # that nobody ends, and grpcio 1.81 would wait for that one for good.
        closing = threading.Thread(target=self._channel.close, daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout_s: float | None = None,
        *,
        repeatable: bool = True,
    ) -> _Response:
        """Make a call, and make it again while that is safe; never when it is not `repeatable`."""
        attempts = self._attempts(timeout_s)
        while True:
            try:
                return method(request, timeout=attempts.remaining_s(), metadata=self._metadata)
            except grpc.RpcError as failure:
                error = decode_error(failure)
                if not repeatable:
                    raise error from failure
                time.sleep(attempts.delay_s(error, answered=False))

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
