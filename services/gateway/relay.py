"""Relays one event stream from a backend, as bytes and one event at a time.

Called by `relay_servicer` once the request is admitted. It chooses the backend, hands on the
remaining deadline and the request's identity, and cancels the backend's call when its reader goes.
It looks into no event, keeps none, and knows no service.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator

import grpc
import grpc.aio

from services.gateway.backend import Backend
from services.gateway.pool import BackendPool
from services.runtime.context import RequestContext, outgoing_metadata
from services.runtime.errors import (
    DeadlineExceededError,
    LimnerError,
    RelayedError,
    UnavailableError,
    from_rpc_error,
)

# What a transport may say when a connection breaks under a call; a backend's own refusals carry
# details and are never taken for a lost backend.
_BROKEN = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL})

_log = logging.getLogger(__name__)


async def relay_events(
    pool: BackendPool,
    path: str,
    *,
    model: str,
    payload: bytes,
    request: RequestContext,
) -> AsyncGenerator[bytes, None]:
    """The serialized events of a backend's streaming method at `path`, as they come.

    A backend that turns out to be gone or shutting down before its first event is replaced once by
    another. Raises UnavailableError (NO_BACKEND, BACKEND_LOST) and whatever the backend answered,
    unchanged. Close the iterator to cancel the backend's call.
    """
    backend = pool.choose(model)
    for is_last in (False, True):
        has_begun = False
        call = backend.stream(path)(
            payload, timeout=_remaining_s(request), metadata=outgoing_metadata(request)
        )
        backend.occupy()
        try:
            # Read, not iterated: an iterator waits for one more message after the end.
            while isinstance(event := await call.read(), bytes):
                has_begun = True
                yield event
            return
        except grpc.aio.AioRpcError as error:
            failure = _failure(error, backend)
        finally:
            call.cancel()  # changes nothing when the call has ended
            backend.release()
        if has_begun or is_last or failure.status_code is not grpc.StatusCode.UNAVAILABLE:
            raise failure
        backend = _replacement(pool, model, backend, failure)


def _replacement(pool: BackendPool, model: str, backend: Backend, failure: LimnerError) -> Backend:
    try:
        return pool.choose(model, excluded=[backend])
    except UnavailableError:
        raise failure from None


def _remaining_s(request: RequestContext) -> float | None:
    if request.deadline is None:
        return None
    remaining_s = request.deadline - time.monotonic()
    if remaining_s <= 0:
        raise DeadlineExceededError
    return remaining_s


def _failure(error: grpc.aio.AioRpcError, backend: Backend) -> LimnerError:
    failure = from_rpc_error(error)
    if (
        isinstance(failure, RelayedError)
        and failure.status_details is None
        and failure.status_code in _BROKEN
    ):
        failure = UnavailableError(reason="BACKEND_LOST")
    if failure.reason == "BACKEND_LOST":
        _log.warning(
            "backend lost under a stream",
            extra={"backend": backend.address, "code": error.code().name, "why": error.details()},
        )
    return failure
