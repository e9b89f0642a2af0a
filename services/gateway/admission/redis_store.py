"""Admission state in Redis or Valkey, shared by all gateways of a cluster.

One Lua script a verb, so that each is atomic in the server, on the server's clock. The three keys
of an account carry it as their hash tag. Works on Redis 6.2 and later and on Valkey.

The client never retries and waits a quarter of a second at most: with redis-py's defaults a gateway
takes seconds to notice that the server is gone. What a verb that timed out did is not known; leases
expire, and the ledger corrects balances, so that it need not be.

The time is kept here. redis-py's `socket_timeout` sends with `asyncio.wait_for`, which on Python
3.11 loses the cancellation of a caller whose command was just sent (gh-86296): a client that left
would go on, and a gateway that drains would never end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from importlib import resources
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.gateway.admission.store import (
    AlreadyRunning,
    Balance,
    BalanceUnknown,
    Claim,
    Decision,
    Expired,
    Granted,
    Limit,
    Refused,
    Renewal,
    Snapshot,
    StoreError,
    Ticket,
    Usage,
)
from services.gateway.period import Period

_TIMEOUT_S = 0.25
_MAX_CONNECTIONS = 32
_SCAN_COUNT = 500
_VERBS = ("admit", "renew", "close", "snapshot", "set_balance", "sweep")
_PREFIX, _SUFFIX = "limner:{", "}:account"

_Answer = TypeVar("_Answer")


class RedisStore:
    """An `AdmissionStore` in the server at `url` (`redis://…`, `rediss://…`, `unix://…`).

    Connects on first use and waits `timeout_s` at most for every answer, connecting included.
    Raises ValueError for a URL that cannot be understood. `clock` is Lua that sets `now`,
    milliseconds since 1970; None: the server's clock, `lua/clock.lua`.
    """

    is_immediate = False

    def __init__(
        self, url: str, *, timeout_s: float = _TIMEOUT_S, clock: str | None = None
    ) -> None:
        self._timeout_s = timeout_s
        # One that blocks: a burst waits for a connection, it does not look like an outage.
        pool = BlockingConnectionPool.from_url(
            url,
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=timeout_s,  # for disconnecting, too
            retry=Retry(NoBackoff(), 0),
            max_connections=_MAX_CONNECTIONS,
        )
        self._redis: Redis = Redis.from_pool(pool)
        preamble = f"{clock or _source('clock')}\n{_source('prelude')}"
        self._scripts = {
            verb: self._redis.register_script(f"{preamble}\n{_source(verb)}") for verb in _VERBS
        }

    async def admit(self, claim: Claim) -> Decision:
        """See `AdmissionStore`."""
        ticket, limits = claim.ticket, claim.limits
        outcome, reached, retry_ms, expired_count, freed, *usage = await self._run(
            "admit",
            ticket.account,
            ticket.claim_id,
            ticket.owner,
            claim.reserve_millicredits,
            claim.lease_ms,
            limits.requests_per_minute,
            limits.burst,
            limits.concurrent_requests,
            _or_minus_one(limits.monthly_requests),
            _or_minus_one(limits.monthly_millicredits),
            int(claim.enforced),
        )
        expired = Expired(lease_count=expired_count, millicredits=freed)
        limit = Limit(reached.decode()) if reached else None
        match outcome:
            case b"granted":
                return Granted(usage=_usage(usage), reached=limit, expired=expired)
            case b"running":
                return AlreadyRunning(expired=expired)
            case b"unknown":
                return BalanceUnknown(expired=expired)
        assert limit is not None
        return Refused(
            usage=_usage(usage),
            reached=limit,
            retry_after_ms=None if retry_ms < 0 else retry_ms,
            expired=expired,
        )

    async def renew(self, ticket: Ticket, *, reserve_millicredits: int, lease_ms: int) -> Renewal:
        """See `AdmissionStore`."""
        renewal = await self._run(
            "renew", ticket.account, ticket.claim_id, ticket.owner, reserve_millicredits, lease_ms
        )
        return Renewal(renewal.decode())

    async def close(
        self,
        ticket: Ticket,
        *,
        request_count: int,
        charged_millicredits: int,
        is_doubtful: bool = False,
    ) -> bool:
        """See `AdmissionStore`."""
        was_held = await self._run(
            "close",
            ticket.account,
            ticket.claim_id,
            ticket.owner,
            request_count,
            charged_millicredits,
            int(is_doubtful),
        )
        return bool(was_held)

    async def snapshot(self, account: str) -> Snapshot:
        """See `AdmissionStore`."""
        known, revision, running, *usage = await self._run("snapshot", account)
        return Snapshot(
            usage=_usage(usage),
            is_known=bool(known),
            running=frozenset(claim_id.decode() for claim_id in running),
            revision=revision,
        )

    async def set_balance(self, account: str, balance: Balance, *, revision: int) -> bool:
        """See `AdmissionStore`."""
        done = await self._run(
            "set_balance",
            account,
            revision,
            _month_number(balance.period),
            balance.request_count,
            balance.charged_millicredits,
            balance.granted_millicredits,
        )
        return bool(done)

    async def sweep(self, account: str) -> Expired:
        """See `AdmissionStore`."""
        lease_count, millicredits = await self._run("sweep", account)
        return Expired(lease_count=lease_count, millicredits=millicredits)

    async def accounts(self) -> AsyncIterator[str]:
        """See `AdmissionStore`."""
        pattern = f"{_PREFIX}*{_SUFFIX}"
        cursor: int | None = None
        while cursor != 0:
            page: Awaitable[Any] = self._redis.scan(cursor or 0, match=pattern, count=_SCAN_COUNT)
            cursor, keys = await self._answer("scan", page)
            for key in keys:
                yield key.decode().removeprefix(_PREFIX).removesuffix(_SUFFIX)

    async def close_store(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    async def _run(self, verb: str, account: str, *arguments: str | int) -> Any:
        keys = [f"{_PREFIX}{account}}}:{name}" for name in ("account", "leases", "reserved")]
        return await self._answer(verb, self._scripts[verb](keys=keys, args=list(arguments)))

    async def _answer(self, verb: str, asked: Awaitable[_Answer]) -> _Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asked
        except TimeoutError as error:
            raise StoreError(f"{verb}: no answer in {self._timeout_s:g} s") from error
        except (RedisError, OSError) as error:
            raise StoreError(f"{verb}: {type(error).__name__}: {error}") from error


def _source(name: str) -> str:
    folder = resources.files("services.gateway.admission").joinpath("lua")
    return folder.joinpath(f"{name}.lua").read_text()


def _or_minus_one(limit: int | None) -> int:
    return -1 if limit is None else limit


def _month_number(period: Period) -> int:
    """Months since the year 0, as the scripts count."""
    return period.year * 12 + period.month - 1


def _usage(values: Sequence[int]) -> Usage:
    now_ms, month, units, bucket_ms, running, requests, charged, held, granted = values
    return Usage(
        now_ms=now_ms,
        period=Period(year=month // 12, month=month % 12 + 1),
        bucket_units=None if units < 0 else units,
        bucket_ms=bucket_ms,
        running_count=running,
        request_count=requests,
        charged_millicredits=charged,
        held_millicredits=held,
        granted_millicredits=granted,
    )
