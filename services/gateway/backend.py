"""One server behind the gateway: its channel, its health, its models and how busy it is.

Used by the pool, which chooses among backends, and by the relay, which opens streams on one. A
backend is followed with the standard health service's Watch stream; its models are listed whenever
it comes back and from time to time. It knows nothing of other backends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from limner.v1 import model_pb2, model_pb2_grpc
from services.runtime.context import RequestContext, outgoing_metadata
from services.runtime.settings import Address
from services.runtime.tls import ClientTls

_DEFAULT_TASKS: frozenset[int] = frozenset({model_pb2.TASK_TEXT_TO_IMAGE})
_STREAM_WINDOW_BYTES = 512 * 1024
_LIST_MODELS_TIMEOUT_S = 5.0
_MIN_RETRY_DELAY_S = 0.1
_MAX_RETRY_DELAY_S = 2.0

Relayed: TypeAlias = grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
_WatchHealth: TypeAlias = grpc.aio.UnaryStreamMultiCallable[
    health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkOptions:
    """How backends are kept in sight.

    A backend that answers nothing for `keepalive_time_s + keepalive_timeout_s` counts as lost, also
    when its connection stays open. Its models are listed anew every `models_refresh_s`.
    """

    keepalive_time_s: float = 10.0
    keepalive_timeout_s: float = 10.0
    models_refresh_s: float = 30.0
    tls: ClientTls | None = None
    """None: plain text."""

    def open_channel(self, address: str, host: str) -> grpc.aio.Channel:
        """A channel to `address`, whose certificate must be for `host`. Raises TlsFileError."""
        options = self.channel_options()
        if self.tls is None:
            return grpc.aio.insecure_channel(address, options)
        options = (*options, ("grpc.ssl_target_name_override", host))
        return grpc.aio.secure_channel(address, self.tls.credentials(), options)

    def channel_options(self) -> Sequence[tuple[str, int | str]]:
        """As gRPC channel arguments."""
        return (
            ("grpc.keepalive_time_ms", round(self.keepalive_time_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout_s * 1000)),
            # A ping of another kind has a timeout of its own, a minute by default, and no keepalive
            # is sent while it is out.
            ("grpc.http2.ping_timeout_ms", round(self.keepalive_timeout_s * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
            # What a stream whose reader stalls may pile up here. Left to itself gRPC measures the
            # bandwidth and grows the window to megabytes, which no neighbour needs.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", _STREAM_WINDOW_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", 0),  # backends are neighbours, never behind a web proxy
            ("grpc.use_local_subchannel_pool", 1),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model of a backend, with its listing as the backend wrote it."""

    name: str
    revision: str
    tasks: frozenset[int]
    """What it can be asked for."""
    listing: model_pb2.Model

    @classmethod
    def listed(cls, model: model_pb2.Model) -> ServedModel:
        """From a listing; one that names no tasks means text to image."""
        return cls(
            name=model.name,
            revision=model.revision,
            tasks=frozenset(model.tasks) or _DEFAULT_TASKS,
            listing=model,
        )


class Backend:
    """A backend at `address` (host:port). `watch` keeps it up to date until cancelled.

    `host` is the name in its certificate, where that is not the host of its address.
    """

    def __init__(
        self,
        address: str,
        options: LinkOptions,
        *,
        host: str | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.address = address
        self._options = options
        self._on_change = on_change
        self._channel = options.open_channel(address, host or Address(address).host)
        self._watch_health: _WatchHealth = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._model_service = model_pb2_grpc.ModelServiceStub(self._channel)
        self._streams: dict[str, Relayed] = {}
        self._models: Mapping[str, ServedModel] = MappingProxyType({})
        self._serving = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def serving(self) -> bool:
        """Whether it said so and its models are known."""
        return self._serving

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """By name, as last listed; kept while the backend is away, empty before the first time."""
        return self._models

    @property
    def draws(self) -> bool:
        """Whether any of its models makes pictures from prompts."""
        return any(model_pb2.TASK_TEXT_TO_IMAGE in each.tasks for each in self._models.values())

    async def list_trained(self, request: RequestContext) -> Sequence[model_pb2.Model]:
        """What it serves for the account of `request` alone; empty when it cannot tell now."""
        try:
            response = await self._model_service.ListModels(
                model_pb2.ListModelsRequest(),
                timeout=_LIST_MODELS_TIMEOUT_S,
                metadata=outgoing_metadata(request),
            )
        except grpc.aio.AioRpcError as error:
            extra = {"backend": self.address, "code": error.code().name}
            _log.warning("trained models not listed", extra=extra)
            return ()
        return [model for model in response.models if model.base_model]

    def stream(self, path: str) -> Relayed:
        """The streaming method at `path` (`/package.Service/Method`), bytes in and bytes out."""
        relayed = self._streams.get(path)
        if relayed is None:
            relayed = self._streams[path] = self._channel.unary_stream(path)
        return relayed

    @property
    def in_flight(self) -> int:
        """Streams open on it from this gateway."""
        return self._in_flight

    def occupy(self) -> None:
        """Counts one stream more as in flight, until `release`."""
        self._in_flight += 1
        self._idle.clear()

    def release(self) -> None:
        """Counts one stream less."""
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    async def watch(self) -> None:
        """Follows health and models until cancelled; reconnects with a growing delay."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_health())
            group.create_task(self._refresh_models())

    async def wait_until_idle(self) -> None:
        """Returns when no stream is in flight."""
        await self._idle.wait()

    async def close(self) -> None:
        """Closes the channel, under whatever streams are in flight."""
        await self._channel.close()

    async def _follow_health(self) -> None:
        request = health_pb2.HealthCheckRequest()  # of the server as a whole, whatever it offers
        delays = _retry_delays()
        while True:
            updates = self._watch_health(request)
            try:
                async for update in updates:
                    await self._heed(update.status)
                    delays = _retry_delays()
                reason = "the health stream ended"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            finally:
                updates.cancel()
            self._set_serving(False, reason)
            await asyncio.sleep(next(delays))

    async def _heed(self, status: int) -> None:
        is_serving = status == health_pb2.HealthCheckResponse.SERVING
        if is_serving:
            await self._list_models()
        self._set_serving(is_serving, health_pb2.HealthCheckResponse.ServingStatus.Name(status))

    async def _refresh_models(self) -> None:
        while True:
            await asyncio.sleep(self._options.models_refresh_s)
            if not self._serving:
                continue
            try:
                await self._list_models()
            except grpc.aio.AioRpcError as error:
                _log.warning(
                    "models not refreshed",
                    extra={"backend": self.address, "code": error.code().name},
                )

    async def _list_models(self) -> None:
        response = await self._model_service.ListModels(
            model_pb2.ListModelsRequest(), timeout=_LIST_MODELS_TIMEOUT_S
        )
        # Trained models belong to accounts; without one none is listed but in development.
        served = [ServedModel.listed(each) for each in response.models if not each.base_model]
        models = MappingProxyType({model.name: model for model in served})
        if models != self._models:
            self._models = models
            self._on_change()

    def _set_serving(self, serving: bool, reason: str) -> None:
        if serving == self._serving:
            return
        self._serving = serving
        _log.log(
            logging.INFO if serving else logging.WARNING,
            "backend serves" if serving else "backend does not serve",
            extra={"backend": self.address, "reason": reason, "models": sorted(self._models)},
        )
        self._on_change()


def _retry_delays() -> Iterator[float]:
    """Seconds: doubling, with jitter, so that gateways do not come back in step."""
    delay_s = _MIN_RETRY_DELAY_S
    while True:
        yield delay_s * random.uniform(0.5, 1.0)
        delay_s = min(2 * delay_s, _MAX_RETRY_DELAY_S)
