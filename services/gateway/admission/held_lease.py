"""A lease in a store: charges go to the ledger, the end goes to the store, the heart beats between.

Made by `control`, kept alive by `Heart`. A store that is away when a lease ends is asked again for
as long as the lease could live there; after that the lease expires by itself and the ledger
corrects the balance.

A store that was emptied has to count what runs again. Nobody is admitted to an account that it does
not know, and a gateway that meets one puts its own leases of that account back first. Every gateway
also renews one lease a second beside the beat; if the store had lost it, it puts all of its own
back. So what ran before is uncounted on no gateway of its own, and on others for about a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
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

LOOK_INTERVAL_S = 1.0
"""How soon a gateway notices that the store lost its leases."""
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
            await self._renew_all()

    async def look(self) -> None:
        """Renews a lease now and then, and all at once when the store lost it; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            lease = next((each for each in self.held.values() if not each.is_immediate), None)
            if lease is not None and await self._renew(lease) is Renewal.RESTORED:
                await self._renew_all()

    async def restore(self, account: str, running: Collection[str]) -> bool:
        """Puts leases of an account back of which the store has only `running`; whether any."""
        lost = [
            lease
            for ticket, lease in self.held.items()
            if ticket.account == account
            and ticket.claim_id not in running
            and not lease.is_immediate
        ]
        for lease in lost:
            await self._renew(lease)
        return bool(lost)

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
        charged = lease.charged_millicredits
        if charged:
            self.metrics.count_credits("settled", charged)
        if charged < lease.request.estimate_millicredits:
            self.metrics.count_credits("refunded", lease.request.estimate_millicredits - charged)

    async def _renew_all(self) -> None:
        for lease in list(self.held.values()):
            await self._renew(lease)

    async def _renew(self, lease: HeldLease) -> Renewal | None:
        """What became of it; None: it ended meanwhile, or the store is away."""
        if lease.ticket not in self.held:
            return None
        try:
            renewal = await lease.store.renew(
                lease.ticket,
                reserve_millicredits=lease.request.estimate_millicredits,
                lease_ms=self.lease_ms,
            )
        except StoreError:
            return None  # counted by the guard; the next beat tries again
        if renewal is not Renewal.RENEWED:
            lease.is_doubtful = True
            _log.warning("a lease was lost under its stream", extra={"now": renewal.value})
        if lease.ticket not in self.held and renewal is Renewal.RESTORED:
            # It ended while this beat was under way, which must not bring it back.
            await self.end(lease)
        return renewal


@dataclass(kw_only=True, slots=True, eq=False)
class HeldLease:
    """A `Lease` in `store`. Its charges are in `ledger` before it says so."""

    request: AdmissionRequest
    ticket: Ticket
    store: AdmissionStore
    ledger: GuardedLedger
    heart: Heart
    tell_standing: Callable[[], MetadataPairs]
    """Where the limits stood when the lease was made."""
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

    def metadata(self) -> MetadataPairs:
        """See `Lease`."""
        estimate, charged = self.request.estimate_millicredits, self.charged_millicredits
        return (
            *self.tell_standing(),
            (ESTIMATE_KEY, credits_text(estimate)),
            (COST_KEY, credits_text(charged)),
        )
