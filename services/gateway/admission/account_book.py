"""The rules of admission for one account: token bucket, leases, and the month's balance.

Used by `memory_store`. Pure arithmetic on whole numbers at times that it is given: no clock, no
lock, no I/O. `lua/` has the same rules for Redis; the tests hold both to one model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.gateway.admission.store import (
    UNITS_PER_REQUEST,
    AlreadyRunning,
    Balance,
    BalanceUnknown,
    Claim,
    Decision,
    Expired,
    Granted,
    Limit,
    Limits,
    Refused,
    Renewal,
    Snapshot,
    Ticket,
    Usage,
    month_end_ms,
    month_of,
)


@dataclass(kw_only=True, slots=True)
class _Lease:
    owner: str
    reserved: int
    expires_ms: int


class AccountBook:
    """State of one account. Times are milliseconds since 1970, amounts millicredits."""

    __slots__ = (
        "_balance",
        "_bucket_ms",
        "_bucket_units",
        "_earliest_expiry_ms",
        "_held",
        "_is_known",
        "_leases",
        "_period_end_ms",
        "_revision",
        "used_ms",
    )

    def __init__(self, now_ms: int) -> None:
        self.used_ms = now_ms
        """When a verb last touched it."""
        self._bucket_units: int | None = None
        self._bucket_ms = now_ms
        self._leases: dict[str, _Lease] = {}
        self._earliest_expiry_ms: float = math.inf  # no lease expires before it
        self._held = 0
        self._balance = Balance(period=month_of(now_ms))
        self._period_end_ms = month_end_ms(self._balance.period)
        self._is_known = False
        self._revision = now_ms  # differs from those of a forgotten book of the same account

    @property
    def is_idle(self) -> bool:
        """Whether no request runs."""
        return not self._leases

    def admit(self, claim: Claim, now_ms: int) -> Decision:
        """See `AdmissionStore.admit`."""
        expired = self.sweep(now_ms)
        ticket, limits = claim.ticket, claim.limits
        lease = self._leases.get(ticket.claim_id)
        if lease is not None:
            if lease.owner != ticket.owner:
                return AlreadyRunning(expired=expired)
            return Granted(usage=self._usage(now_ms), expired=expired)
        if not self._is_known:
            return BalanceUnknown(expired=expired)
        self._hold_bucket(now_ms)
        usage = self._usage(now_ms)
        units = usage.units_of(limits)
        reached = _reached_limit(claim, usage, units)
        if reached is not None and claim.enforced:
            wait_ms = _wait_ms(limits, units) if reached is Limit.REQUESTS else None
            return Refused(usage=usage, reached=reached, retry_after_ms=wait_ms, expired=expired)
        self._bucket_units = max(0, units - UNITS_PER_REQUEST)
        self._bucket_ms = now_ms
        self._open_lease(ticket, claim.reserve_millicredits, now_ms + claim.lease_ms)
        return Granted(usage=self._usage(now_ms), reached=reached, expired=expired)

    def renew(self, ticket: Ticket, reserved: int, lease_ms: int, now_ms: int) -> Renewal:
        """See `AdmissionStore.renew`."""
        self._turn_month(now_ms)
        expires_ms = now_ms + lease_ms
        lease = self._leases.get(ticket.claim_id)
        if lease is None:
            self._open_lease(ticket, reserved, expires_ms)
            return Renewal.RESTORED
        if lease.owner != ticket.owner:
            return Renewal.TAKEN
        lease.expires_ms = expires_ms
        self._earliest_expiry_ms = min(self._earliest_expiry_ms, expires_ms)
        return Renewal.RENEWED

    def close(
        self, ticket: Ticket, request_count: int, charged: int, is_doubtful: bool, now_ms: int
    ) -> bool:
        """See `AdmissionStore.close`."""
        self._turn_month(now_ms)
        lease = self._leases.get(ticket.claim_id)
        is_held = lease is not None and lease.owner == ticket.owner
        if is_doubtful or not is_held:
            self._lose_balance()
        if not is_held:
            return False
        self._remove_lease(ticket.claim_id)
        balance = self._balance
        self._balance = Balance(
            period=balance.period,
            request_count=balance.request_count + request_count,
            charged_millicredits=balance.charged_millicredits + charged,
            granted_millicredits=balance.granted_millicredits,
        )
        return True

    def set_balance(self, balance: Balance, revision: int, now_ms: int) -> bool:
        """See `AdmissionStore.set_balance`."""
        self._turn_month(now_ms)
        if revision != self._revision or balance.period != self._balance.period:
            return False
        self._balance = balance
        self._is_known = True
        self._revision += 1
        return True

    def snapshot(self, now_ms: int) -> Snapshot:
        """See `AdmissionStore.snapshot`."""
        self._turn_month(now_ms)
        return Snapshot(
            usage=self._usage(now_ms),
            is_known=self._is_known,
            running=frozenset(self._leases),
            revision=self._revision,
        )

    def sweep(self, now_ms: int) -> Expired:
        """See `AdmissionStore.sweep`."""
        self._turn_month(now_ms)
        if now_ms < self._earliest_expiry_ms:
            return Expired()
        held_before, count_before = self._held, len(self._leases)
        for claim_id, lease in list(self._leases.items()):
            if lease.expires_ms <= now_ms:
                self._remove_lease(claim_id)
        expiries = (lease.expires_ms for lease in self._leases.values())
        self._earliest_expiry_ms = min(expiries, default=math.inf)
        expired_count = count_before - len(self._leases)
        if expired_count:
            self._lose_balance()
        return Expired(lease_count=expired_count, millicredits=held_before - self._held)

    def _lose_balance(self) -> None:
        if self._is_known:
            self._is_known = False
            self._revision += 1

    def _turn_month(self, now_ms: int) -> None:
        """A new month begins at zero; what runs keeps what it reserved."""
        self.used_ms = now_ms
        if now_ms < self._period_end_ms:
            return
        self._balance = Balance(period=month_of(now_ms))
        self._period_end_ms = month_end_ms(self._balance.period)
        self._revision += 1

    def _hold_bucket(self, now_ms: int) -> None:
        """Where the clock went back, lets the bucket go on from there with what it had."""
        if self._bucket_units is not None and now_ms < self._bucket_ms:
            self._bucket_ms = now_ms

    def _open_lease(self, ticket: Ticket, reserved: int, expires_ms: int) -> None:
        self._leases[ticket.claim_id] = _Lease(
            owner=ticket.owner, reserved=reserved, expires_ms=expires_ms
        )
        self._earliest_expiry_ms = min(self._earliest_expiry_ms, expires_ms)
        self._held += reserved
        self._revision += 1

    def _remove_lease(self, claim_id: str) -> None:
        self._held -= self._leases.pop(claim_id).reserved
        self._revision += 1

    def _usage(self, now_ms: int) -> Usage:
        balance = self._balance
        return Usage(
            now_ms=now_ms,
            period=balance.period,
            bucket_units=self._bucket_units,
            bucket_ms=self._bucket_ms,
            running_count=len(self._leases),
            request_count=balance.request_count,
            charged_millicredits=balance.charged_millicredits,
            held_millicredits=self._held,
            granted_millicredits=balance.granted_millicredits,
        )


def _reached_limit(claim: Claim, usage: Usage, units: int) -> Limit | None:
    """The limit in the way; of several the one that lasts longest."""
    limits = claim.limits
    spent = usage.charged_millicredits + usage.held_millicredits + claim.reserve_millicredits
    counted = usage.request_count + usage.running_count
    if (
        limits.monthly_millicredits is not None
        and spent > limits.monthly_millicredits + usage.granted_millicredits
    ):
        return Limit.CREDITS
    if limits.monthly_requests is not None and counted >= limits.monthly_requests:
        return Limit.QUOTA
    if units < UNITS_PER_REQUEST:
        return Limit.REQUESTS
    if usage.running_count >= limits.concurrent_requests:
        return Limit.CONCURRENCY
    return None


def _wait_ms(limits: Limits, units: int) -> int:
    """Milliseconds until the bucket holds a request."""
    return -(-(UNITS_PER_REQUEST - units) // limits.requests_per_minute)
