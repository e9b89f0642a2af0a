"""What admitting a request costs, beside the rate limiters that one would take instead.

`python -m benchmarks.admission`. For Limner a request is two calls, `admit` and `close`: bucket,
concurrency, monthly quota and credits, reserved and settled. The others decide about the rate
alone, in one call, and a plain INCR decides nothing: it is what any call to the server costs. All
take turns in one run, on one server (Valkey, without persistence) beside the benchmark's process.

Latency is that of one request at a time; throughput that of 64 at once from one asyncio process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import limits
import limits.aio.storage
import limits.aio.strategies
import throttled
import throttled.asyncio
from redis.asyncio import Redis

from benchmarks.report import json_line, table
from services.gateway.admission.memory_store import InMemoryStore
from services.gateway.admission.redis_store import RedisStore
from services.gateway.admission.store import (
    AdmissionStore,
    Balance,
    Claim,
    Granted,
    Limits,
    Ticket,
)
from tests.gateway.admission.redis_server import RedisServer

_ACCOUNT_COUNT = 50
_WORKER_COUNT = 64
_ROUND_COUNT = 5
_PER_MINUTE = 100_000_000  # nobody is refused: what is measured is the way that most requests go
_LIMITS = Limits(
    requests_per_minute=_PER_MINUTE,
    burst=_PER_MINUTE,
    concurrent_requests=1000,
    monthly_requests=10**9,
    monthly_millicredits=10**12,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """Something that handles one request of an account."""

    name: str
    handle: Callable[[str], Awaitable[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Over all rounds."""

    p50_us: float
    p99_us: float
    per_second: float


async def measure(latency_count: int, throughput_count: int) -> None:
    """Starts the server, lets the contestants take turns, prints."""
    async with AsyncExitStack() as stack:
        server = RedisServer()
        stack.callback(server.stop)
        contestants = await _contestants(stack, server.url)
        latencies: dict[str, list[float]] = {each.name: [] for each in contestants}
        rates: dict[str, list[float]] = {each.name: [] for each in contestants}
        for each in contestants:
            await _latencies_us(each, latency_count // 10)
        for _ in range(_ROUND_COUNT):
            for each in contestants:
                latencies[each.name] += await _latencies_us(each, latency_count // _ROUND_COUNT)
            for each in contestants:
                rate = await _requests_per_s(each, throughput_count // _ROUND_COUNT)
                rates[each.name].append(rate)
    figures = {name: _figures(latencies[name], rates[name]) for name in latencies}
    header = ("", "p50 µs", "p99 µs", "requests/s")
    rows = [(name, f.p50_us, f.p99_us, f.per_second) for name, f in figures.items()]
    print(table(header, rows))
    print(
        json_line(
            "admission",
            {
                "latency_count": latency_count,
                "throughput_count": throughput_count,
                "worker_count": _WORKER_COUNT,
                **{
                    name: {"p50_us": f.p50_us, "p99_us": f.p99_us, "per_second": f.per_second}
                    for name, f in figures.items()
                },
            },
        )
    )


async def _contestants(stack: AsyncExitStack, url: str) -> Sequence[Contestant]:
    # The store's own timeout of 0.25 s is for gateways; here a slow machine should be measured.
    memory, shared = InMemoryStore(), RedisStore(url, timeout_s=30)
    client = Redis.from_url(url, max_connections=_WORKER_COUNT)
    stack.push_async_callback(shared.close_store)
    stack.push_async_callback(client.aclose)
    for store in (memory, shared):
        await _tell_balances(store)
    return [
        Contestant(name="Limner in memory, admit + close", handle=_limner(memory)),
        Contestant(name="Limner on Valkey, admit + close", handle=_limner(shared)),
        Contestant(
            name="limits 5.8 on Valkey, moving window",
            handle=_limits(url, limits.aio.strategies.MovingWindowRateLimiter),
        ),
        Contestant(
            name="limits 5.8 on Valkey, fixed window",
            handle=_limits(url, limits.aio.strategies.FixedWindowRateLimiter),
        ),
        Contestant(
            name="throttled-py 3.5 in memory, GCRA",
            handle=_throttled(throttled.asyncio.MemoryStore()),
        ),
        Contestant(
            name="throttled-py 3.5 on Valkey, GCRA",
            handle=_throttled(throttled.asyncio.RedisStore(server=url)),
        ),
        Contestant(name="plain INCR", handle=partial(_increment, client)),
    ]


async def _tell_balances(store: AdmissionStore) -> None:
    for number in range(_ACCOUNT_COUNT):
        seen = await store.snapshot(_account(number))
        balance = Balance(period=seen.usage.period)
        await store.set_balance(_account(number), balance, revision=seen.revision)


def _limner(store: AdmissionStore) -> Callable[[str], Awaitable[None]]:
    numbers = itertools.count()

    async def handle(account: str) -> None:
        ticket = Ticket(account=account, claim_id=f"r{next(numbers)}", owner="0123456789abcdef")
        claim = Claim(ticket=ticket, limits=_LIMITS, reserve_millicredits=100, lease_ms=30_000)
        decision = await store.admit(claim)
        assert isinstance(decision, Granted), decision
        assert await store.close(ticket, request_count=1, charged_millicredits=80)

    return handle


def _limits(
    url: str, strategy: type[limits.aio.strategies.RateLimiter]
) -> Callable[[str], Awaitable[None]]:
    storage = limits.aio.storage.RedisStorage(f"async+{url}", implementation="redispy")
    limiter = strategy(storage)
    rate = limits.RateLimitItemPerMinute(_PER_MINUTE)

    async def handle(account: str) -> None:
        assert await limiter.hit(rate, strategy.__name__, account)

    return handle


def _throttled(store: throttled.asyncio.BaseStore) -> Callable[[str], Awaitable[None]]:
    limiter = throttled.asyncio.Throttled(
        using="gcra", quota=throttled.asyncio.per_min(_PER_MINUTE), store=store
    )

    async def handle(account: str) -> None:
        result = await limiter.limit(account)
        assert not result.limited

    return handle


async def _increment(client: Redis, account: str) -> None:
    await client.incr(account)


async def _latencies_us(contestant: Contestant, count: int) -> list[float]:
    spent_us = []
    for number in range(count):
        begin = time.perf_counter_ns()
        await contestant.handle(_account(number))
        spent_us.append((time.perf_counter_ns() - begin) / 1000)
    return spent_us


async def _requests_per_s(contestant: Contestant, count: int) -> float:
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await contestant.handle(_account(number))

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(_WORKER_COUNT):
            group.create_task(work())
    return count / (time.perf_counter() - begin)


def _figures(latencies_us: list[float], rates: list[float]) -> Figures:
    latencies_us.sort()
    return Figures(
        p50_us=statistics.median(latencies_us),
        p99_us=latencies_us[round(0.99 * (len(latencies_us) - 1))],
        per_second=statistics.median(rates),
    )


def _account(number: int) -> str:
    return f"account-{number % _ACCOUNT_COUNT}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=5_000, help="requests timed one by one")
    parser.add_argument("--load", type=int, default=20_000, help="requests under load")
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.calls, arguments.load))


if __name__ == "__main__":
    main()
