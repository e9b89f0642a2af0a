"""The trainer behind the gateway: its channel, its health, and calls to it.

Unlike the servers of the pool there is one: it keeps jobs. `training_servicer` relays through it as
bytes, `training_credits` asks it what became of jobs. It knows no account and no credit.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from limner.v1 import training_pb2, training_pb2_grpc
from services.gateway.backend import LinkOptions
from services.runtime.errors import LimnerError, UnavailableError, from_rpc_error
from services.runtime.settings import Address

TRAINING_SERVICE = training_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name

MetadataPairs: TypeAlias = tuple[tuple[str, str], ...]

_RETRY_S = 1.0
_UNANSWERED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)

_log = logging.getLogger(__name__)


class TrainerLink:
    """The way to the trainer at `address`. `watch` keeps `serving` up to date until cancelled."""

    def __init__(
        self, address: Address, options: LinkOptions, *, on_change: Callable[[], None]
    ) -> None:
        self._channel = options.open_channel(address, address.host)
        self._address = address
        self._on_change = on_change
        self._serving = False
        self.stub: training_pb2_grpc.TrainingServiceAsyncStub = (
            training_pb2_grpc.TrainingServiceStub(self._channel)
        )
        self._watch_health = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    @property
    def serving(self) -> bool:
        """Whether it said so."""
        return self._serving

    async def call(
        self, name: str, payload: bytes, *, metadata: MetadataPairs, timeout_s: float | None
    ) -> bytes:
        """One answer to one request, as bytes. Raises LimnerError."""
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            _path(name)
        )
        try:
            return await method(payload, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from error

    async def upload(
        self,
        name: str,
        payloads: AsyncIterator[bytes],
        *,
        metadata: MetadataPairs,
        timeout_s: float | None,
    ) -> bytes:
        """One answer to a stream of requests, as bytes; takes the next when the last has left.

        Raises LimnerError.
        """
        method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = self._channel.stream_unary(
            _path(name)
        )
        call = method(timeout=timeout_s, metadata=metadata)
        try:
            try:
                async for payload in payloads:
                    await call.write(payload)
                await call.done_writing()
            except (asyncio.InvalidStateError, grpc.aio.UsageError):
                pass  # it has answered already; the answer says why
            return await call
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from error
        finally:
            call.cancel()  # changes nothing when the call has ended

    async def stream(
        self, name: str, payload: bytes, *, metadata: MetadataPairs, timeout_s: float | None
    ) -> AsyncGenerator[bytes, None]:
        """Answers to one request, as bytes. Raises LimnerError; close it to cancel the call."""
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            _path(name)
        )
        call = method(payload, timeout=timeout_s, metadata=metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from error
        finally:
            call.cancel()

    async def watch(self) -> None:
        """Follow the trainer's health until cancelled."""
        request = health_pb2.HealthCheckRequest(service=TRAINING_SERVICE)
        while True:
            updates = self._watch_health(request)
            try:
                async for update in updates:
                    serving = update.status == health_pb2.HealthCheckResponse.SERVING
                    self._set_serving(serving, str(update.status))
                reason = "the health stream ended"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            finally:
                updates.cancel()
            self._set_serving(False, reason)
            await asyncio.sleep(_RETRY_S * random.uniform(0.5, 1.0))

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    def _set_serving(self, serving: bool, reason: str) -> None:
        if serving == self._serving:
            return
        self._serving = serving
        level = logging.INFO if serving else logging.WARNING
        text = "trainer serves" if serving else "trainer does not serve"
        _log.log(level, text, extra={"trainer": self._address, "reason": reason})
        self._on_change()


def failure_of(error: grpc.aio.AioRpcError) -> LimnerError:
    """What the caller hears when a call to the trainer failed."""
    failure = from_rpc_error(error)
    if is_unanswered(failure) and failure.reason == "BACKEND_ERROR":
        return UnavailableError(reason="BACKEND_LOST")
    return failure


def is_unanswered(failure: LimnerError) -> bool:
    """Whether a call may have done its work in spite of this failure."""
    return failure.status_code in _UNANSWERED


def _path(name: str) -> str:
    return f"/{TRAINING_SERVICE}/{name}"
