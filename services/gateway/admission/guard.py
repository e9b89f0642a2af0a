"""A store behind a circuit breaker, and what takes its place while it is away.

`GuardedStore` counts failures and stops asking a store that does not answer, so that an outage
costs a request nothing but the answer. `LocalBuckets` then keeps rate and concurrency at the limit
divided by the number of gateways; balances have no stand-in, as they cannot be divided.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import ParamSpec, TypeVar

from services.gateway.admission.memory_store import InMemoryStore
from services.gateway.admission.store import (
    AdmissionStore,
    Balance,
    BalanceUnknown,
    Claim,
    Decision,
    Expired,
    Limits,
    Renewal,
    Snapshot,
    StoreError,
    Ticket,
)
from services.gateway.metrics import GatewayMetrics

_P = ParamSpec("_P")
_Result = TypeVar("_Result")

_FAILURES_TO_OPEN = 3
_OPEN_S = 1.0

_log = logging.getLogger(__name__)


class CircuitBreaker:
    """Stops calls after three failures in a row; a second later one call may try again."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failure_count = 0
        self._retry_at = 0.0

    @property
    def is_failing(self) -> bool:
        """Whether the last call failed."""
        return self._failure_count > 0

    def allows(self) -> bool:
        """Whether a call may be made now; the one that may try again is told so once."""
        if self._failure_count < _FAILURES_TO_OPEN:
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        self._retry_at = now + _OPEN_S
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._failure_count = 0

    def failed(self) -> None:
        """A call was not."""
        self._failure_count += 1
        self._retry_at = self._clock() + _OPEN_S


class GuardedStore:
    """An `AdmissionStore` that raises StoreError at once while the one behind it is away."""

    def __init__(
        self,
        store: AdmissionStore,
        metrics: GatewayMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._breaker = CircuitBreaker(clock=clock)
        self.is_immediate = store.is_immediate

    async def admit(self, claim: Claim) -> Decision:
        """See `AdmissionStore`."""
        return await self._guarded(self._store.admit, claim)

    async def renew(self, ticket: Ticket, *, reserve_millicredits: int, lease_ms: int) -> Renewal:
        """See `AdmissionStore`."""
        return await self._guarded(
            self._store.renew,
            ticket,
            reserve_millicredits=reserve_millicredits,
            lease_ms=lease_ms,
        )

    async def close(
        self,
        ticket: Ticket,
        *,
        request_count: int,
        charged_millicredits: int,
        is_doubtful: bool = False,
    ) -> bool:
        """See `AdmissionStore`."""
        return await self._guarded(
            self._store.close,
            ticket,
            request_count=request_count,
            charged_millicredits=charged_millicredits,
            is_doubtful=is_doubtful,
        )

    async def snapshot(self, account: str) -> Snapshot:
        """See `AdmissionStore`."""
        return await self._guarded(self._store.snapshot, account)

    async def set_balance(self, account: str, balance: Balance, *, revision: int) -> bool:
        """See `AdmissionStore`."""
        return await self._guarded(self._store.set_balance, account, balance, revision=revision)

    async def sweep(self, account: str) -> Expired:
        """See `AdmissionStore`."""
        return await self._guarded(self._store.sweep, account)

    def accounts(self) -> AsyncIterator[str]:
        """See `AdmissionStore`; a failure is not counted here, the next verb will meet it."""
        return self._store.accounts()

    async def close_store(self) -> None:
        """See `AdmissionStore`."""
        await self._store.close_store()

    async def _guarded(
        self, verb: Callable[_P, Awaitable[_Result]], *args: _P.args, **kwargs: _P.kwargs
    ) -> _Result:
        if not self._breaker.allows():
            raise StoreError("the store is away")
        try:
            result = await verb(*args, **kwargs)
        except StoreError as error:
            if not self._breaker.is_failing:
                _log.warning("the admission store does not answer", extra={"why": str(error)})
            self._breaker.failed()
            self._metrics.store_errors.inc()
            self._metrics.degraded.labels("store").set(1)
            raise
        if self._breaker.is_failing:
            _log.info("the admission store answers again")
            self._breaker.succeeded()
            self._metrics.degraded.labels("store").set(0)
        return result


class LocalBuckets:
    """Rate and concurrency of this gateway alone, at a `replica_count`-th of the limits."""

    def __init__(self, replica_count: int, store: InMemoryStore | None = None) -> None:
        self._replica_count = replica_count
        self.store = store or InMemoryStore()

    async def admit(self, claim: Claim) -> Decision:
        """Decides about rate and concurrency as a store would."""
        local = dataclasses.replace(claim, limits=self._share(claim.limits))
        decision = await self.store.admit(local)
        if isinstance(decision, BalanceUnknown):
            account = claim.ticket.account
            seen = await self.store.snapshot(account)
            nothing = Balance(period=seen.usage.period)
            await self.store.set_balance(account, nothing, revision=seen.revision)
            decision = await self.store.admit(local)
        return decision

    def _share(self, limits: Limits) -> Limits:
        return Limits(
            requests_per_minute=max(1, limits.requests_per_minute // self._replica_count),
            burst=max(1, limits.burst // self._replica_count),
            concurrent_requests=max(1, limits.concurrent_requests // self._replica_count),
        )
