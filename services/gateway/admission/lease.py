"""A request that was let in, and the promise that it ends exactly once.

The relay asks an `Admission` once per request, after the key, the model and the price are known and
before a backend is. `Admitted` closes the lease that it gets under success, failure and
cancellation: `settle` when a picture was charged, `refund` when none was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from services.gateway.tiers import Tier
from services.runtime.context import response_metadata

_Result = TypeVar("_Result")

MetadataPairs: TypeAlias = Sequence[tuple[str, str]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionRequest:
    """Who asks for what, and what it will cost at most."""

    request_id: str
    """As the caller knows it."""
    charge_id: str
    """The same for a repetition of the same request and different for any other: what is charged
    under it is charged once."""
    account: str
    tier: Tier
    service: str
    """Label for metrics and ledger, for example `generation`."""
    model: str
    artifact_millicredits: int
    """The price of each artifact that is delivered."""
    artifact_count: int

    @property
    def estimate_millicredits(self) -> int:
        """The most that the request may cost."""
        return self.artifact_millicredits * self.artifact_count


@dataclass(kw_only=True, slots=True)
class Delivery:
    """What was charged and relayed; counted up while the request runs."""

    artifact_count: int = 0
    size_bytes: int = 0


class Lease(Protocol):
    """A request that was let in. `settle` or `refund` is called, once."""

    @property
    def is_immediate(self) -> bool:
        """Whether `settle` and `refund` are done without waiting: nothing can interrupt them."""

    async def charge(self, index: int) -> None:
        """Charges the artifact `index`, in the ledger for good once this returns.

        Called before the artifact's last bytes leave, so that no complete picture is free. Raises
        UnavailableError when the ledger does not take it.
        """

    async def settle(self, delivered: Delivery) -> None:
        """Ends the lease and gives back what was reserved and not charged."""

    async def refund(self) -> None:
        """Ends the lease, nothing having been charged."""

    def metadata(self) -> MetadataPairs:
        """For the answer: where the limits stood when the request was let in, the estimate, and
        what was charged. Asked once, at the end."""


class Admission(Protocol):
    """Decides whether a request may run now."""

    is_immediate: bool
    """Whether `admit` waits for nothing once it has granted: a cancellation loses no lease."""

    async def admit(self, request: AdmissionRequest) -> Lease:
        """A lease. Raises LimnerError when it may not run, nothing consumed."""

    async def describe(self, account: str, tier: Tier) -> MetadataPairs:
        """Where the account's limits stand; empty when that cannot be told now."""

    async def reconcile(self, account: str) -> None:
        """Heeds what the ledger has of the account, as after a grant."""


class Admitted:
    """A request that is admitted for the length of a block, and what was delivered so far.

    At the end the answer of the call that the task serves is told what the lease has to tell.
    The lease is closed exactly once, under success, failure and cancellation. A caller pays for the
    artifacts that were charged inside, also when the call failed or was cancelled after them, and
    for nothing else.
    """

    __slots__ = ("_admission", "_request", "delivered", "lease")

    lease: Lease

    def __init__(self, admission: Admission, request: AdmissionRequest) -> None:
        self._admission = admission
        self._request = request
        self.delivered = Delivery()

    async def __aenter__(self) -> Self:
        """Raises as `Admission.admit` does."""
        self.lease = await _admit(self._admission, self._request)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lease, delivered = self.lease, self.delivered
        closing = lease.settle(delivered) if delivered.artifact_count else lease.refund()
        await (closing if lease.is_immediate else _finish(closing))
        answer = response_metadata()
        answer.is_announced = True
        answer.trailing.extend(lease.metadata())

    async def charge(self, index: int) -> None:
        """Charges an artifact; a caller that goes meanwhile does not undo it."""
        await _shielded(asyncio.ensure_future(self._charge(index)))

    async def _charge(self, index: int) -> None:
        await self.lease.charge(index)
        self.delivered.artifact_count += 1


async def _admit(admission: Admission, request: AdmissionRequest) -> Lease:
    """Admits; a caller that is cancelled meanwhile leaves no lease behind."""
    if admission.is_immediate:
        return await admission.admit(request)
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
