"""The standard health service (`grpc.health.v1`), for probes, load balancers and the gateway.

Registered by `services.runtime.server`. It is not the servicer of grpcio-health-checking: there, a
watcher that leaves makes the other watchers of the same service deaf, and a watcher that does not
read holds up every change of status (1.81.1, `_async.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

OVERALL = ""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):
    """The health of each service by name, and of the server as a whole under the empty name.

    All are NOT_SERVING at first. On the event loop only.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._status: dict[str, int] = dict.fromkeys([OVERALL, *services], _NOT_SERVING)
        self._changed = asyncio.Event()
        self._shutting_down = False
        self._closed = False

    def set_serving(self, serving: bool, service: str | None = None) -> None:
        """Set the health of `service`, or of all and the whole; does nothing after `shut_down`.

        Raises KeyError when the server does not offer the service.
        """
        if service is not None and service not in self._status:
            raise KeyError(service)
        if not self._shutting_down:
            self._set(serving, self._status if service is None else [service])

    def shut_down(self) -> None:
        """Turn everything NOT_SERVING for good."""
        self._shutting_down = True
        self._set(False, self._status)

    def close(self) -> None:
        """End the watches, so that they do not hold up the server's stop."""
        self._closed = True
        self._notify()

    def _set(self, serving: bool, services: Iterable[str]) -> None:
        self._status |= dict.fromkeys(services, _SERVING if serving else _NOT_SERVING)
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        """Tell the health of a service; NOT_FOUND when the server does not offer it."""
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Tell the health of a service, at once and whenever it changes."""
        told = None
        while True:
            # Taken before the look: a change during the yield is not missed.
            changed, closed = self._changed, self._closed
            status = self._status.get(request.service, _SERVICE_UNKNOWN)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            if closed:
                return
            await changed.wait()
