"""The gRPC server of a process: bind, health, reflection, interceptor, SIGTERM drain.

Made by each service's `__main__`. It registers what it is given and knows no service.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from services.runtime.calls import CallsInFlight
from services.runtime.context import (
    Announce,
    Identify,
    announce_nothing,
    identity_from_metadata,
)
from services.runtime.errors import LimnerError
from services.runtime.health import HealthServicer
from services.runtime.interceptors import CallInterceptor
from services.runtime.metrics import CallMetrics

# What cancelled handlers get to settle what they hold, and what the last bytes get to leave.
_CANCEL_GRACE_S = 5.0
_FLUSH_S = 1.0

_OPTIONS: tuple[tuple[str, int], ...] = (
    # Two processes on one port must fail, not share it silently.
    ("grpc.so_reuseport", 0),
    # A client that vanished without a word (power, network) is found within 80 s, and its rows with
    # it, even if nothing is being sent. A minute is what load balancers let pass, too.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Clients may ping as often as every 10 s, between calls too; the default would answer them with
    # GOAWAY "too_many_pings", and the gateway needs pings to notice a lost backend.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Connections end after 5 minutes (±10 %), so that clients look the name up again and find new
    # pods. There is no max_connection_age_grace_ms on purpose: it would kill jobs that take longer;
    # without it the old connection stays for as long as its calls do.
    ("grpc.max_connection_age_ms", 300_000),
)

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A service to offer: its full protobuf name and how it is added to a server."""

    name: str
    register: Callable[[grpc.aio.Server], None]


class GrpcServer:
    """An aio server that says when it is ready and that drains.

    `address` is host:port, where port 0 picks a free one. `identify` tells who calls, `announce`
    what every answer carries; the gateway passes its own, see `services.runtime.context`.
    `registry` receives the call metrics. `draining` is set when the drain begins, for calls that
    would go on for ever. `health_address`, host:port, answers nothing but health checks, in plain
    text: for probes of a server that speaks TLS.
    A process that is to be stopped by SIGKILL should get `grace_s` + 6 s first.
    """

    def __init__(
        self,
        address: str,
        services: Sequence[Service],
        *,
        grace_s: float,
        max_receive_bytes: int = 32 * 2**20,
        credentials: grpc.ServerCredentials | None = None,
        identify: Identify = identity_from_metadata,
        announce: Announce = announce_nothing,
        registry: CollectorRegistry | None = None,
        draining: asyncio.Event | None = None,
        health_address: str | None = None,
    ) -> None:
        self._address = address
        self._health_address = health_address
        self._draining = draining or asyncio.Event()
        self._services = tuple(services)
        self._grace_s = grace_s
        self._max_receive_bytes = max_receive_bytes
        self._credentials = credentials
        self._calls = CallsInFlight()
        self._interceptor = CallInterceptor(
            calls=self._calls,
            metrics=CallMetrics(registry or CollectorRegistry()),
            identify=identify,
            announce=announce,
        )
        self._health = HealthServicer(service.name for service in self._services)
        self._server: grpc.aio.Server | None = None
        self._health_server: grpc.aio.Server | None = None
        self.health_port = 0
        """Where the plain-text health port listens, once started; 0: there is none."""

    @property
    def in_flight(self) -> int:
        """How many calls are being served, health and reflection aside."""
        return self._calls.count

    async def start(self) -> int:
        """Bind, serve and return the port. Health is NOT_SERVING until `set_serving(True)`.

        Raises OSError when the address cannot be bound.
        """
        server = grpc.aio.server(
            interceptors=[self._interceptor],
            options=[*_OPTIONS, ("grpc.max_receive_message_length", self._max_receive_bytes)],
        )
        for service in self._services:
            service.register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [service.name for service in self._services]
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
        )
        if self._health_address is not None:
            await self._start_health(self._health_address)
        port = _bind(server, self._address, self._credentials)
        await server.start()
        self._server = server
        _LOGGER.info("listening", extra={"address": self._address, "port": port, "services": names})
        return port

    def set_serving(self, serving: bool, service: str | None = None) -> None:
        """Set the health of one service, or of all of them and of the server as a whole."""
        self._health.set_serving(serving, service)

    def end_call(self, task: asyncio.Task[Any], error: LimnerError) -> None:
        """Cancel the call that `task` serves; its client hears `error`. Does nothing after it."""
        self._calls.end(task, error)

    async def drain(self, grace_s: float | None = None) -> None:
        """Turn NOT_SERVING, refuse new calls, let the others finish within the grace, stop.

        What runs longer than `grace_s` (the server's own when None) is cancelled and ends as
        UNAVAILABLE, reason SHUTTING_DOWN, as new calls do.
        """
        self._draining.set()
        self._health.shut_down()
        self._calls.close()
        _LOGGER.info("draining", extra={"in_flight": self.in_flight})
        cancelled_count = await self._calls.finish(
            self._grace_s if grace_s is None else grace_s, cancel_grace_s=_CANCEL_GRACE_S
        )
        self._health.close()
        for server in (self._server, self._health_server):
            if server is not None:
                await server.stop(_FLUSH_S)
        _LOGGER.info("stopped", extra={"cancelled": cancelled_count, "unfinished": self.in_flight})

    def cut_grace(self) -> None:
        """Have a drain that waits for calls cancel them now."""
        self._calls.cut_grace()

    async def _start_health(self, address: str) -> None:
        server = grpc.aio.server(options=_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self.health_port = _bind(server, address, None)
        await server.start()
        self._health_server = server


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}; is it in use?") from error


async def run_until_signal(
    server: GrpcServer, *, failed: asyncio.Future[BaseException] | None = None
) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the exit code.

    0 after a signal, however many calls had to be cancelled; a second signal ends the grace.
    1 when `failed` (that of a `DeviceWorker`) is done first: without the device nothing can finish,
    so that there is no grace.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()

    def on_signal() -> None:
        if signalled.is_set():
            server.cut_grace()
        signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await _first(signalled, failed)
        if failed is not None and failed.done():
            await server.drain(grace_s=0)
            return 1
        await server.drain()
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _first(signalled: asyncio.Event, failed: asyncio.Future[BaseException] | None) -> None:
    """Wait for either; `failed` is left as it is."""
    signal_task = asyncio.create_task(signalled.wait())
    waited: list[asyncio.Future[Any]] = [signal_task]
    if failed is not None:
        waited.append(failed)
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        signal_task.cancel()
