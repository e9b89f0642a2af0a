"""Prometheus metrics: a registry per process, the call metrics of a server, their HTTP endpoint.

A registry is made in `__main__` and passed down; the global one of prometheus_client is not used,
so that two servers can live in one process. Labels never hold a key, an account or a prompt.
"""

from __future__ import annotations

import functools
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType
from typing import Literal, Self
from wsgiref.simple_server import WSGIServer

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from services.runtime.settings import Address

CallType = Literal["unary", "server_stream", "client_stream", "bidi_stream"]

# A call is anything from a look-up to the longest job: 1 ms to 10 minutes.
_HANDLING_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A method that is served, as the metrics label it."""

    service: str
    name: str
    type: CallType

    @property
    def path(self) -> str:
        """As it is on the wire."""
        return f"/{self.service}/{self.name}"


class CallMetrics:
    """What every gRPC server counts: calls started, calls handled by status code, durations."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("grpc_service", "grpc_method", "grpc_type")
        self._started = Counter(
            "grpc_server_started", "Calls that arrived.", labels, registry=registry
        )
        self._handled = Counter(
            "grpc_server_handled",
            "Calls that ended, by status code.",
            (*labels, "grpc_code"),
            registry=registry,
        )
        self._handling_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Duration of calls, streaming included.",
            labels,
            buckets=_HANDLING_BUCKETS_S,
            registry=registry,
        )

    def of(self, method: Method) -> MethodMetrics:
        """Return the metrics of one method, looked up once."""
        labels = (method.service, method.name, method.type)
        return MethodMetrics(
            method=method,
            started=self._started.labels(*labels),
            seconds=self._handling_seconds.labels(*labels),
            count_handled=lambda code: self._handled.labels(*labels, code.name),
        )


class MethodMetrics:
    """The metrics of one method; each counter is looked up once."""

    def __init__(
        self,
        *,
        method: Method,
        started: Counter,
        seconds: Histogram,
        count_handled: Callable[[grpc.StatusCode], Counter],
    ) -> None:
        self.method = method
        self.started = started
        self._seconds = seconds
        self._count_handled = functools.cache(count_handled)

    def handled(self, code: grpc.StatusCode, duration_s: float) -> None:
        """Count a call that ended."""
        self._count_handled(code).inc()
        self._seconds.observe(duration_s)


def new_registry(service: str) -> CollectorRegistry:
    """Return the registry of a process, with its CPU, memory, garbage collection and build info."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    Gauge(
        "build_info",
        "Always 1; the labels say what is running.",
        ("service", "version", "python"),
        registry=registry,
    ).labels(service, version("limner"), platform.python_version()).set(1)
    return registry


class MetricsServer:
    """An HTTP endpoint that exposes a registry under `/metrics`, on a thread of its own."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port that was bound."""
        return self._server.server_port

    def close(self) -> None:
        """Stop serving and free the port. At most half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def serve_metrics(address: str, registry: CollectorRegistry) -> MetricsServer:
    """Expose `registry` at `address`; port 0 picks a free one. Raises OSError when it is taken."""
    address = Address(address)
    server, thread = start_http_server(address.port, addr=address.host, registry=registry)
    return MetricsServer(server, thread)
