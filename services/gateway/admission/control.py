"""Admission as a whole: from a request to a lease or a refusal, whatever is up or down.

The relay asks `AdmissionControl`; `run` keeps leases alive and balances right meanwhile. What
happens when something is away:

    store    rate and concurrency   this gateway's own buckets, at the limit divided by the gateways
             quota and credits      UNAVAILABLE: a balance that cannot be seen is not spent
    ledger   everything             UNAVAILABLE: what cannot be charged is not drawn

An outage is never told as RESOURCE_EXHAUSTED, and `gateway_degraded` is 1 while it lasts.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial

from services.gateway.admission.guard import GuardedStore, LocalBuckets
from services.gateway.admission.guarded_ledger import (
    LEDGER_TIMEOUT_S,
    GuardedLedger,
    Ledger,
    LedgerDownError,
)
from services.gateway.admission.headers import standing_metadata, standings
from services.gateway.admission.held_lease import Heart, HeldLease
from services.gateway.admission.lease import AdmissionRequest, Lease, MetadataPairs
from services.gateway.admission.reconciliation import Reconciliation
from services.gateway.admission.refusals import AlreadyRunningError, LimitReachedError
from services.gateway.admission.store import (
    AdmissionStore,
    AlreadyRunning,
    BalanceUnknown,
    Claim,
    Decision,
    Expired,
    Granted,
    Limit,
    Limits,
    Refused,
    StoreError,
    Ticket,
)
from services.gateway.metrics import Decided, GatewayMetrics
from services.gateway.tiers import Tier
from services.runtime.errors import UnavailableError

LEASE_S = 30.0
_RECONCILE_INTERVAL_S = 60.0
_SWEEP_INTERVAL_S = 10.0
_SUSPECT_INTERVAL_S = 1.0

_DECIDED: dict[Limit, Decided] = {
    Limit.REQUESTS: "rate",
    Limit.CONCURRENCY: "concurrency",
    Limit.QUOTA: "quota",
    Limit.CREDITS: "quota",
}

_log = logging.getLogger(__name__)


class AdmissionControl:
    """An `Admission` on `store`, with `ledger` as the record.

    `replica_count` gateways share the store. A lease ends when it is not renewed for `lease_s`.
    """

    def __init__(
        self,
        store: AdmissionStore,
        ledger: Ledger,
        *,
        metrics: GatewayMetrics,
        replica_count: int = 1,
        lease_s: float = LEASE_S,
        reconcile_interval_s: float = _RECONCILE_INTERVAL_S,
        ledger_timeout_s: float = LEDGER_TIMEOUT_S,
    ) -> None:
        self._store = GuardedStore(store, metrics)
        self.is_immediate = store.is_immediate
        self._owners = (f"{secrets.token_hex(8)}-{number}" for number in itertools.count())
        self._ledger = GuardedLedger(ledger, metrics, timeout_s=ledger_timeout_s)
        self._metrics = metrics
        self._local = LocalBuckets(replica_count)
        self._lease_ms = round(lease_s * 1000)
        self._reconcile_interval_s = reconcile_interval_s
        self._reconciliation = Reconciliation(
            self._store,
            self._ledger,
            metrics,
            restore=lambda account, running: self._heart.restore(account, running),
        )
        self._heart = Heart(
            lease_ms=self._lease_ms, reconciliation=self._reconciliation, metrics=metrics
        )

    async def admit(self, request: AdmissionRequest) -> Lease:
        """A lease.

        Raises LimitReachedError, AlreadyRunningError, and UnavailableError when the outage policy
        says so; nothing is consumed then.
        """
        started = time.perf_counter()
        try:
            return await self._admit(request)
        finally:
            self._metrics.admission_seconds.observe(time.perf_counter() - started)

    async def describe(self, account: str, tier: Tier) -> MetadataPairs:
        """Where the account's limits stand; empty while the store or the ledger is away."""
        try:
            snapshot = await self._store.snapshot(account)
            if not snapshot.is_known and await self._reconciliation.correct(account):
                snapshot = await self._store.snapshot(account)
        except (StoreError, LedgerDownError):
            return ()
        return standing_metadata(standings(limits_of(tier), snapshot.usage))

    async def reconcile(self, account: str) -> None:
        """Corrects the account's balance now, as after a grant; later if that cannot be now."""
        self._reconciliation.suspect(account)
        await self._reconciliation.correct_suspects()

    async def run(self) -> None:
        """Renews, sweeps and corrects until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._heart.beat())
            group.create_task(self._heart.look())
            group.create_task(self._heart.finish_endings())
            group.create_task(_every(_SUSPECT_INTERVAL_S, self._reconciliation.correct_suspects))
            group.create_task(self._reconciliation.correct_all())
            group.create_task(_every(self._reconcile_interval_s, self._reconciliation.correct_all))
            group.create_task(_every(_SWEEP_INTERVAL_S, self._sweep))

    async def close(self) -> None:
        """Ends what the store has not heard of, and lets go of it."""
        for lease in list(self._heart.ending.values()):
            await self._heart.end(lease)
        await self._reconciliation.close()
        await self._store.close_store()

    async def _admit(self, request: AdmissionRequest) -> Lease:
        claim = self._claim(request)
        store: AdmissionStore = self._store
        try:
            await self._ledger.require()  # what cannot be charged is not drawn
            decision = await self._decide(claim)
            decided: Decided = "allowed"
        except LedgerDownError as error:
            raise self._unavailable(request) from error
        except StoreError as error:
            if _has_balance(claim.limits):
                raise self._unavailable(request) from error
            store, decided = self._local.store, "degraded"
            decision = await self._local.admit(claim)
        self._count_expired(decision.expired)
        match decision:
            case Granted():
                return self._granted(request, claim, decision, store, decided)
            case Refused():
                raise self._refusal(request, claim, decision)
            case AlreadyRunning():
                self._count(request, "duplicate")
                raise AlreadyRunningError
            case BalanceUnknown():
                raise self._unavailable(request)

    async def _decide(self, claim: Claim) -> Decision:
        """The store's decision, once it knows the balance. Raises StoreError, LedgerDownError."""
        decision = await self._store.admit(claim)
        if isinstance(decision, BalanceUnknown):
            self._count_expired(decision.expired)
            await self._reconciliation.correct(claim.ticket.account)
            decision = await self._store.admit(claim)
        return decision

    def _claim(self, request: AdmissionRequest) -> Claim:
        return Claim(
            ticket=Ticket(
                account=request.account,
                claim_id=request.charge_id,
                owner=next(self._owners),
            ),
            limits=limits_of(request.tier),
            reserve_millicredits=request.estimate_millicredits,
            lease_ms=self._lease_ms,
            enforced=not request.tier.shadow,
        )

    def _granted(
        self,
        request: AdmissionRequest,
        claim: Claim,
        granted: Granted,
        store: AdmissionStore,
        decided: Decided,
    ) -> Lease:
        if granted.reached is not None:
            decided = "shadow"
            extra = {
                "account": request.account,
                "tier": request.tier.name,
                "limit": granted.reached.value,
                "request_id": request.request_id,
            }
            _log.info("a limit that is not enforced was reached", extra=extra)
        self._count(request, decided)
        self._metrics.count_credits("reserved", request.estimate_millicredits)
        lease = HeldLease(
            request=request,
            ticket=claim.ticket,
            store=store,
            ledger=self._ledger,
            heart=self._heart,
            tell_standing=partial(self._tell_standing, request.tier.name, claim.limits, granted),
            is_doubtful=decided == "degraded",
        )
        self._heart.held[claim.ticket] = lease
        return lease

    def _refusal(
        self, request: AdmissionRequest, claim: Claim, refused: Refused
    ) -> LimitReachedError:
        self._count(request, _DECIDED[refused.reached])
        retry_ms = refused.retry_after_ms
        return LimitReachedError(
            refused.reached,
            account=request.account,
            tier=request.tier.name,
            standings=standings(claim.limits, refused.usage),
            retry_after_s=None if retry_ms is None else retry_ms / 1000,
        )

    def _unavailable(self, request: AdmissionRequest) -> UnavailableError:
        self._count(request, "degraded")
        message = "limits and credits cannot be checked now; try again in a moment"
        return UnavailableError(message, reason="NOT_READY")

    async def _sweep(self) -> None:
        async for account in self._local.store.accounts():
            self._count_expired(await self._local.store.sweep(account))
        try:
            async for account in self._store.accounts():
                self._count_expired(await self._store.sweep(account))
        except StoreError as error:
            _log.warning("expired leases not swept", extra={"why": str(error)})

    def _count(self, request: AdmissionRequest, decided: Decided) -> None:
        self._metrics.count_admission(request.tier.name, request.service, decided)

    def _tell_standing(self, tier_name: str, limits: Limits, granted: Granted) -> MetadataPairs:
        """Where the limits stood when the request was let in; those nearly reached are counted."""
        told = standings(limits, granted.usage)
        for limit, standing in told.items():
            if standing.is_near:
                self._metrics.near_limit.labels(tier_name, limit.value).inc()
        return standing_metadata(told)

    def _count_expired(self, expired: Expired) -> None:
        if expired.lease_count:
            self._metrics.leases_expired.inc(expired.lease_count)
            self._metrics.count_credits("expired", expired.millicredits)


def limits_of(tier: Tier) -> Limits:
    """The limits that a store keeps."""
    return Limits(
        requests_per_minute=tier.requests_per_minute,
        burst=tier.burst,
        concurrent_requests=tier.concurrent_requests,
        monthly_requests=tier.monthly_requests,
        monthly_millicredits=tier.monthly_millicredits,
    )


def _has_balance(limits: Limits) -> bool:
    return limits.monthly_requests is not None or limits.monthly_millicredits is not None


async def _every(interval_s: float, action: Callable[[], Awaitable[None]]) -> None:
    """Acts now and then until cancelled; gateways of a cluster do not act in step."""
    while True:
        await asyncio.sleep(interval_s * random.uniform(0.5, 1.0))
        await action()
