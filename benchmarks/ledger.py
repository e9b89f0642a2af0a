"""What the ledger of record costs, and how soon a revocation counts on another gateway.

    python -m benchmarks.ledger

Charges per second into a real SQLite file and a real PostgreSQL, both syncing every commit, beside
the bare INSERT of the same rows, a commit each: the peer that keeps no sums and no order. Twenty
charges wait at a time, which a gateway commits to SQLite in groups.
Then revocations in the database, and the time until each of two gateways refuses the key.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.report import json_line, table
from limner.v1 import account_pb2, account_pb2_grpc
from services.gateway.account_store import AccountStore
from services.gateway.audit import Actor
from services.gateway.gateway import open_gateway
from services.gateway.group_commit import GroupedLedger
from services.gateway.key_store import KeyStore
from services.gateway.ledger import Ledger
from services.gateway.schema import migrate
from services.gateway.settings import GatewaySettings
from services.gateway.tables import ledger_entries
from services.runtime.settings import Address
from services.storage.database import begin_write, open_engine
from tests.postgresql import PostgresServer

_PEPPER = "pepper-of-the-benchmark-0123456789abcdef"
_ACTOR = Actor(account="bench", key_id="", request_id="bench")
_ACCOUNT_COUNT = 20
_CONCURRENCY = 20

Append = Callable[[int, str], Awaitable[object]]


async def _measure(append: Append, count: int, account_count: int, prefix: str) -> float:
    """Appends per second, `_CONCURRENCY` at a time, spread over accounts."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await append(number, f"{prefix}{number % account_count}")

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(_CONCURRENCY)))
    return count / (time.perf_counter() - started)


def _charge(ledger: Ledger | GroupedLedger, request: str) -> Append:
    async def append(number: int, account: str) -> bool:
        return await ledger.charge(
            account=account,
            request_id=f"{request}-{number}",
            item="artifact-0",
            millicredits=1007,
            service="generation",
            model="bench",
            at=datetime.now(UTC),
        )

    return append


def _bare_insert(engine: AsyncEngine, request: str) -> Append:
    async def append(number: int, account: str) -> None:
        values = {
            "account": account,
            "request_id": f"{request}-{number}",
            "item": "artifact-0",
            "period": "2026-01",
            "millicredits": 1007,
            "service": "generation",
            "model": "bench",
            "at": datetime.now(UTC),
        }
        async with begin_write(engine) as connection:
            await connection.execute(insert(ledger_entries).values(values))

    return append


async def _rates(url: str, count: int) -> dict[str, float]:
    engine = open_engine(url)
    await migrate(engine)
    for number in range(_ACCOUNT_COUNT):
        await AccountStore(engine=engine).create_account(f"a{number}", tier="pro", actor=_ACTOR)
    plain = Ledger(engine=engine)
    # As the gateway does.
    ledger = GroupedLedger(plain) if engine.dialect.name == "sqlite" else plain
    rates = {}
    for name, accounts in (("one account", 1), (f"{_ACCOUNT_COUNT} accounts", _ACCOUNT_COUNT)):
        rates[f"charge, {name}"] = await _measure(_charge(ledger, name), count, accounts, "a")
        bare = _bare_insert(engine, f"bare {name}")
        rates[f"bare insert, {name}"] = await _measure(bare, count, accounts, "a")
    await engine.dispose()
    return rates


@asynccontextmanager
async def _gateways(url: str) -> AsyncIterator[list[account_pb2_grpc.AccountServiceAsyncStub]]:
    async with AsyncExitStack() as stack:
        stubs = []
        for _ in range(2):
            settings = GatewaySettings(
                address=Address("127.0.0.1:0"),
                database_url=SecretStr(url),
                key_pepper=SecretStr(_PEPPER),
                backends=("127.0.0.1:1",),
                grace_s=0.1,
            )
            gateway = await stack.enter_async_context(
                open_gateway(settings, registry=CollectorRegistry())
            )
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}")
            await stack.enter_async_context(channel)
            stubs.append(account_pb2_grpc.AccountServiceStub(channel))
        yield stubs


async def _revocations(url: str, count: int) -> list[float]:
    """Milliseconds from the end of a revocation to the last answer that the key still got."""
    engine = open_engine(url)
    await migrate(engine)
    keys, delays_ms = KeyStore(engine=engine), []
    async with _gateways(url) as stubs:
        for _ in range(count):
            key, record = await keys.create_key(
                account="bench",
                name="bench",
                pepper=_PEPPER.encode(),
                actor=_ACTOR,
                new_account_tier="pro",
            )
            for stub in stubs:
                await _is_accepted(stub, key.text)
            await keys.revoke_key(record.key_id, actor=_ACTOR)
            revoked = time.perf_counter()
            delays_ms += await asyncio.gather(
                *(_until_refused(stub, key.text, revoked) for stub in stubs)
            )
    await engine.dispose()
    return delays_ms


async def _until_refused(
    stub: account_pb2_grpc.AccountServiceAsyncStub, key: str, since: float
) -> float:
    while True:
        asked = time.perf_counter()
        if not await _is_accepted(stub, key):
            return (asked - since) * 1000
        await asyncio.sleep(0.01)


async def _is_accepted(stub: account_pb2_grpc.AccountServiceAsyncStub, key: str) -> bool:
    try:
        await stub.GetAccount(
            account_pb2.GetAccountRequest(), metadata=[("authorization", f"Bearer {key}")]
        )
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        return False
    return True


async def _run(folder: Path, server: PostgresServer, count: int, revocation_count: int) -> None:
    urls: dict[str, Callable[[str], str]] = {
        "SQLite": lambda name: f"sqlite+aiosqlite:///{folder}/{name}.db",
        "PostgreSQL": lambda _name: server.create_database(),
    }
    results: dict[str, dict[str, float]] = {}
    for database, make in urls.items():
        rates = await _rates(make("rates"), count)
        delays_ms = await _revocations(make("keys"), revocation_count)
        results[database] = {
            **{f"{name}, per s": rate for name, rate in rates.items()},
            "revocation counts, median ms": statistics.median(delays_ms),
            "revocation counts, longest ms": max(delays_ms),
        }
    rows: list[list[str | int | float]] = [
        [name, *(results[each][name] for each in results)] for name in results["SQLite"]
    ]
    print(table(["", *results], rows))
    print(json_line("ledger", results))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--charges", type=int, default=400, help="of each kind")
    parser.add_argument("--revocations", type=int, default=10)
    arguments = parser.parse_args()
    server = PostgresServer()
    try:
        server.create()
        server.start()
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_run(Path(folder), server, arguments.charges, arguments.revocations))
    finally:
        server.remove()


if __name__ == "__main__":
    main()
