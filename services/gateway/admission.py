"""The seam where requests are let in and paid for.

The relay asks an `Admission` once per request, after the key and the model are known and before a
backend is, and closes the lease that it gets exactly once: `settle` with what was delivered, or
`refund` when nothing was. `admitted` keeps that promise under success, failure and cancellation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from services.gateway.metrics import NO_TIER, GatewayMetrics

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionRequest:
    """Who asks for what. `request_id` makes a repeated question the same question."""

    request_id: str
    account: str
    key_id: str
    service: str
    model: str


@dataclass(kw_only=True, slots=True)
class Delivery:
    """What reached the caller; the relay counts it up while it relays."""

    artifact_count: int = 0
    size_bytes: int = 0


class Lease(Protocol):
    """A request that was let in. Exactly one of the two methods is called, once."""

    async def settle(self, delivered: Delivery) -> None:
        """Ends the lease and charges what was delivered."""

    async def refund(self) -> None:
        """Ends the lease and charges nothing."""


class Admission(Protocol):
    """Decides whether a request may run now."""

    async def admit(self, request: AdmissionRequest) -> Lease:
        """A lease; a LimnerError (RESOURCE_EXHAUSTED) when a limit is reached, nothing consumed."""


class OpenAdmission:
    """Lets every authenticated request in: no limits, no credits, no state."""

    async def admit(self, request: AdmissionRequest) -> Lease:
        """Always a lease."""
        return _OpenLease()


class _OpenLease:
    async def settle(self, delivered: Delivery) -> None:
        pass

    async def refund(self) -> None:
        pass


class MeteredAdmission:
    """Counts and times what another admission decides."""

    def __init__(self, admission: Admission, metrics: GatewayMetrics) -> None:
        self._admission = admission
        self._metrics = metrics

    async def admit(self, request: AdmissionRequest) -> Lease:
        """As the other admission does."""
        with self._metrics.admission_seconds.time():
            lease = await self._admission.admit(request)
        self._metrics.admissions.labels(NO_TIER, request.service, "allowed").inc()
        return lease


@asynccontextmanager
async def admitted(admission: Admission, request: AdmissionRequest) -> AsyncIterator[Delivery]:
    """Admits `request` for the length of the block and closes the lease exactly once.

    Count what the caller got into the yielded `Delivery`: a caller pays for finished artifacts,
    also when the call failed or was cancelled after them, and for nothing else.
    """
    lease = await _admit(admission, request)
    delivered = Delivery()
    try:
        yield delivered
    finally:
        await _finish(lease.settle(delivered) if delivered.artifact_count else lease.refund())


async def _admit(admission: Admission, request: AdmissionRequest) -> Lease:
    """Admits; a caller that is cancelled meanwhile leaves no lease behind."""
    admitting = asyncio.ensure_future(admission.admit(request))
    try:
        return await _shielded(admitting)
    except asyncio.CancelledError:
        if not admitting.cancelled() and admitting.exception() is None:
            await _finish(admitting.result().refund())
        raise


async def _finish(closing: Coroutine[Any, Any, None]) -> None:
    await _shielded(asyncio.ensure_future(closing))


async def _shielded(task: asyncio.Future[_Result]) -> _Result:
    """Waits until `task` is done whatever happens to the caller, then tells of a cancellation."""
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is None:
        return task.result()
    if not task.cancelled() and (failure := task.exception()) is not None:
        _log.error("admission failed under a cancelled call", exc_info=failure)
    raise cancellation
