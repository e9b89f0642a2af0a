"""Waits until a service says that it is ready, and tells how far it is.

It watches the standard health service; it asks nothing in a loop and times nothing out, since the
caller sees the end of a process that will never be ready.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 300),
)


class State(Enum):
    """How far a service is."""

    STARTING = "starting"
    """Its process runs; nobody listens."""
    WARMING = "warming up"
    """It listens and is not ready."""
    READY = "ready"
    """It takes requests."""


async def wait_until_ready(
    address: str, service: str, on_state: Callable[[State], None] = lambda state: None
) -> None:
    """Return when the health of `service` at `address` is SERVING; `on_state` hears each change."""
    on_state(State.STARTING)
    request = health_pb2.HealthCheckRequest(service=service)
    async with grpc.aio.insecure_channel(address, _CHANNEL_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            # The published type stubs leave the method out.
            watch = stub.Watch(request, wait_for_ready=True)  # type: ignore[attr-defined]
            try:
                async for answer in watch:
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        on_state(State.READY)
                        return
                    on_state(State.WARMING)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            finally:
                watch.cancel()
            on_state(State.STARTING)
