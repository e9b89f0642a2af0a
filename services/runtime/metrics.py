"""Prometheus metrics: a registry per process, the call metrics of a server, their HTTP endpoint.

A registry is made in `__main__` and passed down; the global one of prometheus_client is not used,
so that two servers can live in one process. Labels never hold a key, an account or a prompt.
"""

from __future__ import annotations

import platform
import threading
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

    def started(self, method: Method) -> None:
        """Count a call that arrived."""
        self._started.labels(method.service, method.name, method.type).inc()

    def handled(self, method: Method, code: grpc.StatusCode, duration_s: float) -> None:
        """Count a call that ended."""
        labels = (method.service, method.name, method.type)
        self._handled.labels(*labels, code.name).inc()
        self._handling_seconds.labels(*labels).observe(duration_s)


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
