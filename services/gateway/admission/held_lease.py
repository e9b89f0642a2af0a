"""A lease in a store: charges go to the ledger, the end goes to the store, the heart beats between.

Made by `control`, kept alive by `Heart`. A store that is away when a lease ends is asked again for
as long as the lease could live there; after that the lease expires by itself and the ledger
corrects the balance.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from services.gateway.admission.guarded_ledger import GuardedLedger, LedgerDownError
from services.gateway.admission.headers import (
    COST_KEY,
    ESTIMATE_KEY,
    credits_text,
)
from services.gateway.admission.lease import AdmissionRequest, Delivery, MetadataPairs
from services.gateway.admission.reconciliation import Reconciliation
from services.gateway.admission.store import AdmissionStore, Renewal, StoreError, Ticket
from services.gateway.metrics import GatewayMetrics
from services.runtime.errors import UnavailableError

_RETRY_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Heart:
    """Renews the leases of this gateway, and ends those whose end the store has not heard of."""

    lease_ms: int
    reconciliation: Reconciliation
    metrics: GatewayMetrics
    clock: Callable[[], float] = time.monotonic
    held: dict[Ticket, HeldLease] = field(default_factory=dict)
    ending: dict[Ticket, HeldLease] = field(default_factory=dict)

    async def beat(self) -> None:
        """Renews every lease, a third of its time after the last beat; until cancelled."""
        while True:
            await asyncio.sleep(self.lease_ms / 3000)
            for lease in list(self.held.values()):
                await self._renew(lease)

    async def finish_endings(self) -> None:
        """Tells the store of ends that it has not heard of; until cancelled."""
        while True:
            await asyncio.sleep(_RETRY_S)
            for lease in list(self.ending.values()):
                await self.end(lease)

    async def end(self, lease: HeldLease) -> None:
        """Tells the store that `lease` ended; a store that is away is told later."""
        self.held.pop(lease.ticket, None)
        try:
            was_held = await lease.store.close(
                lease.ticket,
                request_count=lease.new_request_count,
                charged_millicredits=lease.charged_millicredits,
                is_doubtful=lease.is_doubtful,
            )
        except StoreError as error:
            lease.give_up_at = lease.give_up_at or self.clock() + self.lease_ms / 1000
            if self.clock() < lease.give_up_at:
                self.ending[lease.ticket] = lease
                return
            _log.warning("the end of a lease was not stored", extra={"why": str(error)})
            was_held = False
        self.ending.pop(lease.ticket, None)
        if not was_held or lease.is_doubtful:
            self.reconciliation.suspect(lease.ticket.account)
        if was_held:
            self._count(lease)

    def _count(self, lease: HeldLease) -> None:
        self.metrics.count_credits("settled", lease.charged_millicredits)
        refunded = lease.request.estimate_millicredits - lease.charged_millicredits
        self.metrics.count_credits("refunded", max(0, refunded))

    async def _renew(self, lease: HeldLease) -> None:
        if lease.ticket not in self.held:
            return  # ended while others were renewed
        try:
            renewal = await lease.store.renew(
                lease.ticket,
                reserve_millicredits=lease.request.estimate_millicredits,
                lease_ms=self.lease_ms,
            )
        except StoreError:
            return  # counted by the guard; the next beat tries again
        if renewal is not Renewal.RENEWED:
            lease.is_doubtful = True
            _log.warning("a lease was lost under its stream", extra={"now": renewal.value})
        if lease.ticket not in self.held and renewal is Renewal.RESTORED:
            # It ended while this beat was under way, which must not bring it back.
            await self.end(lease)


@dataclass(kw_only=True, slots=True, eq=False)
class HeldLease:
    """A `Lease` in `store`. Its charges are in `ledger` before it says so."""

    request: AdmissionRequest
    ticket: Ticket
    store: AdmissionStore
    ledger: GuardedLedger
    heart: Heart
    standing: MetadataPairs
    charged_millicredits: int = 0
    new_request_count: int = 0
    is_doubtful: bool = False
    """Store and ledger may differ in what this request did."""
    give_up_at: float | None = None

    @property
    def is_immediate(self) -> bool:
        """See `Lease`."""
        return self.store.is_immediate

    async def charge(self, index: int) -> None:
        """See `Lease`."""
        request = self.request
        try:
            is_new = await self.ledger.charge(
                account=request.account,
                request_id=request.charge_id,
                item=f"artifact-{index}",
                millicredits=request.artifact_millicredits,
                service=request.service,
                model=request.model,
                at=datetime.now(UTC),
            )
        except LedgerDownError as error:
            self.is_doubtful = True
            message = "what was drawn cannot be charged now; try again with the same x-request-id"
            raise UnavailableError(message, reason="NOT_READY") from error
        if is_new:
            self.charged_millicredits += request.artifact_millicredits
            self.new_request_count = 1
        else:
            self.is_doubtful = True  # of an earlier attempt, whose lease this one stands for

    async def settle(self, delivered: Delivery) -> None:
        """See `Lease`."""
        await self.heart.end(self)

    async def refund(self) -> None:
        """See `Lease`."""
        await self.heart.end(self)

    def opening_metadata(self) -> MetadataPairs:
        """See `Lease`."""
        estimate = credits_text(self.request.estimate_millicredits)
        return [*self.standing, (ESTIMATE_KEY, estimate)]

    def closing_metadata(self) -> MetadataPairs:
        """See `Lease`."""
        return [(COST_KEY, credits_text(self.charged_millicredits))]
