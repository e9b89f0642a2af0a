"""What a store of admission state promises, and what goes in and comes out.

`AdmissionControl` asks a store; `memory_store` and `redis_store` are the two there are, and one
test-suite holds for both. A store decides and remembers: the token bucket, the running requests
(leases with their reservations) and the month's balance of each account. It knows neither tiers nor
prices, and never is the record of what was charged: that is the ledger, which corrects it.

The rules, the same in Python (`account_book`) and in Lua (`lua/`):

- `admit` is one decision about bucket, concurrency, quota and credits. It changes something only if
  all of them pass.
- A lease ends once: by `close`, or by expiry, which gives its reservation back. Only what removed
  the lease moves credits.
- Time that the clock goes back refills no bucket, ends no lease early and reopens no month.
- A balance is never invented: an account the store has not seen, or lost, is `BalanceUnknown` until
  `set_balance`. It becomes unknown again when a lease did not end by its owner's hand, because then
  the store cannot know what the lease had charged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Protocol, TypeAlias

from services.gateway.period import Period

UNITS_PER_REQUEST = 60_000
"""What a request takes from the bucket. One unit per request per minute flows in every millisecond,
so that a bucket is a whole number of units and its arithmetic is exact."""


def month_of(now_ms: int) -> Period:
    """The month of a time in milliseconds since 1970."""
    return Period.containing(datetime.fromtimestamp(now_ms // 1000, UTC))


def month_end_ms(period: Period) -> int:
    """When the next month begins, in milliseconds since 1970."""
    return round(period.end.timestamp()) * 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of an account, from its tier."""

    requests_per_minute: int
    """Refill of the token bucket, at least 1."""
    burst: int
    """Size of the token bucket in requests, at least 1."""
    concurrent_requests: int
    monthly_requests: int | None = None
    """None: no limit; likewise of the credits."""
    monthly_millicredits: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """Names a lease, and proves whose it is."""

    account: str
    claim_id: str
    """The request that the lease is for: at most one lease of an account has it."""
    owner: str
    """The attempt that holds it, so that a retry is told from a repetition of the same question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What `admit` decides about."""

    ticket: Ticket
    limits: Limits
    reserve_millicredits: int
    """The most that the request may cost, not negative."""
    lease_ms: int
    """How long the lease lasts unless renewed."""
    enforced: bool = True
    """False: the request is let in whatever the decision, which is reported all the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """What the ledger says about a month of an account, running requests left out."""

    period: Period
    request_count: int = 0
    charged_millicredits: int = 0
    granted_millicredits: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Expired:
    """Leases that ended by expiry, and what they had reserved."""

    lease_count: int = 0
    millicredits: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Where an account stands, at the store's time `now_ms` (since 1970)."""

    now_ms: int
    period: Period
    bucket_units: int | None
    """What was in the token bucket at `bucket_ms`, see `UNITS_PER_REQUEST`; None: never used."""
    bucket_ms: int
    running_count: int
    """Leases."""
    request_count: int
    """Requests charged this month, running ones left out; likewise of the credits."""
    charged_millicredits: int
    held_millicredits: int
    """Reservations of the running requests."""
    granted_millicredits: int
    """Credits of this month beyond the tier's."""

    def units_of(self, limits: Limits) -> int:
        """What is in the bucket at `now_ms`; a clock that went back refills nothing."""
        size = limits.burst * UNITS_PER_REQUEST
        if self.bucket_units is None:
            return size
        elapsed_ms = max(0, self.now_ms - self.bucket_ms)
        return min(size, self.bucket_units + elapsed_ms * limits.requests_per_minute)


class Limit(Enum):
    """What can stand in a request's way, by the name it has in metadata."""

    REQUESTS = "requests"
    CONCURRENCY = "concurrency"
    QUOTA = "quota"
    CREDITS = "credits"


@dataclass(frozen=True, kw_only=True, slots=True)
class Granted:
    """The request may run. `reached` is the limit that was not enforced, if one was reached."""

    usage: Usage
    reached: Limit | None = None
    expired: Expired = field(default_factory=Expired)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A limit was reached and nothing was consumed."""

    usage: Usage
    reached: Limit
    retry_after_ms: int | None
    """When the bucket has a token; None where no time is known."""
    expired: Expired = field(default_factory=Expired)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlreadyRunning:
    """Another attempt at the same request holds its lease."""

    expired: Expired = field(default_factory=Expired)


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceUnknown:
    """Nobody told the store the account's balance, or it lost it."""

    expired: Expired = field(default_factory=Expired)


Decision: TypeAlias = Granted | Refused | AlreadyRunning | BalanceUnknown


class Renewal(Enum):
    """What became of a lease that was to be renewed."""

    RENEWED = "renewed"
    RESTORED = "restored"
    """It had expired or the store had lost it; it is back with its reservation."""
    TAKEN = "taken"
    """It had expired and another attempt at the request holds it now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """An account as the store has it, for showing and for correcting it."""

    usage: Usage
    is_known: bool
    """Whether the balance is, see `BalanceUnknown`."""
    running: frozenset[str]
    """The claim ids of the leases."""
    revision: int
    """Differs after every change of leases or balance."""


class StoreError(Exception):
    """The store did not answer, or not in time; the verb may have happened or not."""


class AdmissionStore(Protocol):
    """State of admission. Every verb is atomic and raises StoreError when the store is away."""

    is_immediate: bool
    """Whether a verb is done without waiting, so that no cancellation can come in between."""

    async def admit(self, claim: Claim) -> Decision:
        """Decides about `claim`; asking again with the same ticket changes nothing."""

    async def renew(self, ticket: Ticket, *, reserve_millicredits: int, lease_ms: int) -> Renewal:
        """Prolongs the lease to `lease_ms` from now."""

    async def close(
        self,
        ticket: Ticket,
        *,
        request_count: int,
        charged_millicredits: int,
        is_doubtful: bool = False,
    ) -> bool:
        """Ends the lease: settles what was charged and gives the rest of the reservation back.

        With zeros it refunds. False, and no amount changes, when the lease is not there any more;
        the balance is unknown then, and also when `is_doubtful` says that the ledger may have more
        or less of this request than the caller.
        """

    async def snapshot(self, account: str) -> Snapshot:
        """The account as it is now; leases that expired count until they are swept."""

    async def set_balance(self, account: str, balance: Balance, *, revision: int) -> bool:
        """Replaces the balance if the account is still at `revision` and in that month."""

    async def sweep(self, account: str) -> Expired:
        """Removes the account's expired leases and gives their reservations back.

        If there were any, the balance is unknown.
        """

    def accounts(self) -> AsyncIterator[str]:
        """The accounts that the store knows something about; an account may come twice."""

    async def close_store(self) -> None:
        """Lets go of connections."""
