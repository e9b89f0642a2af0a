"""The balance at the end: what callers received, what was drawn, the ledger, and the store."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from redis.asyncio import Redis
from sqlalchemy import select

from benchmarks.chaos.traffic import Request
from benchmarks.chaos.world import (
    LEASE_S,
    NARROW_CONCURRENCY,
    PICTURE_MILLICREDITS,
    TIGHT_MILLICREDITS,
    World,
)
from services.gateway.admission.redis_store import RedisStore
from services.gateway.ledger import Ledger, Usage
from services.gateway.period import Period
from services.gateway.tables import ledger_entries
from services.storage.database import open_engine

_PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """Figures for the report, and everything that does not add up."""

    figures: Mapping[str, int | float]
    mistakes: Sequence[str]


async def strike_balance(world: World, requests: Sequence[Request]) -> Balance:
    """Waits until the leases are back and compares all accounts."""
    engine = open_engine(world.database_url)
    store = RedisStore(world.valkey.url, timeout_s=10)
    try:
        settled_s = await _wait_for_leases(store, world)
        entries = await _read_entries(world)
        usages = {account: await _usage(Ledger(engine=engine), account) for account in world.keys}
        drift_s = await _wait_for_balances(store, usages)
        left = await _keys_left(world)
    finally:
        await store.close_store()
        await engine.dispose()
    mistakes = [
        *_entry_mistakes(world, requests, entries),
        *_usage_mistakes(world, entries, usages),
        *(f"a key that is stuck: {key}" for key in left),
    ]
    if settled_s is None:
        mistakes.append("leases were still held after their time-to-live")
    if drift_s is None:
        mistakes.append("balances of the store differ from the ledger")
    received_count = sum(len(request.received) for request in requests)
    figures: dict[str, int | float] = {
        "requests": len(requests),
        "pictures drawn": sum(world.backend.drawn.values()),
        "pictures received": received_count,
        "ledger entries": len(entries),
        "charged, but left by the caller": len(entries) - received_count,
        "millicredits in the ledger": sum(usage.charged_millicredits for usage in usages.values()),
        "leases back after s": round(settled_s or -1.0, 1),
        "balances right after s": round(drift_s or -1.0, 1),
        "most at once of a limited account": max(
            count for name, count in world.backend.most.items() if world.tier_of[name] == "narrow"
        ),
        "its limit": NARROW_CONCURRENCY,
    }
    return Balance(figures=figures, mistakes=mistakes)


async def _wait_for_leases(store: RedisStore, world: World) -> float | None:
    """Seconds until no account had a lease or a reservation; None when that took too long."""
    begin = time.monotonic()
    while time.monotonic() - begin < 2 * LEASE_S + _PATIENCE_S / 4:
        usages = [(await store.snapshot(account)).usage for account in world.keys]
        if not any(usage.running_count or usage.held_millicredits for usage in usages):
            return time.monotonic() - begin
        await asyncio.sleep(0.2)
    return None


async def _wait_for_balances(store: RedisStore, usages: Mapping[str, Usage]) -> float | None:
    """Seconds until the store had what the ledger has; None when that took too long."""
    begin = time.monotonic()
    while time.monotonic() - begin < _PATIENCE_S:
        wrong = 0
        for account, usage in usages.items():
            seen = await store.snapshot(account)
            wrong += seen.is_known and (
                seen.usage.charged_millicredits != usage.charged_millicredits
                or seen.usage.request_count != usage.request_count
            )
        if not wrong:
            return time.monotonic() - begin
        await asyncio.sleep(0.2)
    return None


async def _read_entries(world: World) -> Counter[tuple[str, str, str]]:
    """Account, request id as the caller knows it, and item; each with how often it was charged."""
    engine = open_engine(world.database_url)
    async with engine.connect() as connection:
        rows = (await connection.execute(select(ledger_entries))).all()
    await engine.dispose()
    assert all(row.millicredits == PICTURE_MILLICREDITS for row in rows)
    return Counter((row.account, row.request_id.rpartition(":")[0], row.item) for row in rows)


async def _usage(ledger: Ledger, account: str) -> Usage:
    return await ledger.usage(account, Period.containing(datetime.now(UTC)))


async def _keys_left(world: World) -> Sequence[str]:
    """Leases and reservations that nothing will ever take away."""
    client = Redis.from_url(world.valkey.url)
    found = [key async for key in client.scan_iter() if not key.endswith(b":account")]
    await client.aclose()
    return [key.decode() for key in found]


def _entry_mistakes(
    world: World, requests: Sequence[Request], entries: Counter[tuple[str, str, str]]
) -> Iterator[str]:
    for key, count in entries.items():
        if count != 1:
            yield f"charged {count} times: {key}"
    charged: Counter[tuple[str, str]] = Counter()
    for account, request_id, _ in entries:
        charged[account, request_id] += 1
    for request in requests:
        name = (request.account, request.request_id)
        for index in request.received:
            if (*name, f"artifact-{index}") not in entries:
                yield f"a picture for nothing: {name} {index}"
        if charged[name] != len(request.received) and not request.is_abandoned:
            yield f"charged {charged[name]}, received {len(request.received)}: {name}"
        if charged[name] > world.backend.drawn[name]:
            yield f"charged without being drawn: {name}"
    known = {(request.account, request.request_id) for request in requests}
    for account, request_id, _ in entries:
        if (account, request_id) not in known:
            yield f"nobody asked for it: {account} {request_id}"


def _usage_mistakes(
    world: World, entries: Counter[tuple[str, str, str]], usages: Mapping[str, Usage]
) -> Iterator[str]:
    counts = Counter(account for account, _, _ in entries)
    for account, usage in usages.items():
        if usage.charged_millicredits != counts[account] * PICTURE_MILLICREDITS:
            yield f"the sums of {account} are not those of its entries"
        if world.tier_of[account] == "tight" and usage.charged_millicredits > TIGHT_MILLICREDITS:
            yield f"{account} is over its credits: {usage.charged_millicredits}"
