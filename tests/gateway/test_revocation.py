"""A key that is shut out anywhere is shut out on every replica within two seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import grpc
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from limner.v1 import account_pb2, account_pb2_grpc
from services.gateway.account_store import AccountStore
from services.gateway.changes import MAX_AGE_S, POLL_INTERVAL_S, ChangeCounter, count_change
from services.gateway.gateway import open_gateway
from services.gateway.key_store import KeyStore
from services.storage.database import begin_write
from tests.gateway.actors import ACTOR
from tests.gateway.harness import PEPPER, reason, settings
from tests.gateway.waiting import until

REVOCATION_S = 2.0


@dataclass(kw_only=True)
class Replicas:
    stubs: list[account_pb2_grpc.AccountServiceStub]
    keys: KeyStore
    accounts: AccountStore

    async def answers(self, key: str) -> list[str]:
        """What each replica says to a call with the key: OK or the reason."""
        return await asyncio.gather(*(_answer(stub, key) for stub in self.stubs))


async def _answer(stub, key):
    try:
        metadata = [("authorization", f"Bearer {key}")]
        await stub.GetAccount(account_pb2.GetAccountRequest(), metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return reason(error)
    return "OK"


@asynccontextmanager
async def two_replicas(tmp_path, database_url, engine) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        stubs = []
        for _ in range(2):
            configured = settings(tmp_path, ["127.0.0.1:1"], database_url=SecretStr(database_url))
            gateway = await stack.enter_async_context(
                open_gateway(configured, registry=CollectorRegistry())
            )
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}")
            )
            stubs.append(account_pb2_grpc.AccountServiceStub(channel))
        yield Replicas(
            stubs=stubs, keys=KeyStore(engine=engine), accounts=AccountStore(engine=engine)
        )


async def make_key(replicas):
    key, record = await replicas.keys.create_key(
        account="acme", name="n", pepper=PEPPER.encode(), actor=ACTOR, new_account_tier="free"
    )
    return key.text, record.key_id


async def revoke(replicas, key_id):
    await replicas.keys.revoke_key(key_id, actor=ACTOR)


async def rotate(replicas, key_id):
    await replicas.keys.rotate_key(
        key_id, overlap=timedelta(0), pepper=PEPPER.encode(), actor=ACTOR
    )


async def suspend(replicas, key_id):
    await replicas.accounts.suspend("acme", actor=ACTOR)


@pytest.mark.parametrize(
    ("shut_out", "said"),
    [(revoke, "KEY_REVOKED"), (rotate, "KEY_EXPIRED"), (suspend, "ACCOUNT_SUSPENDED")],
)
async def test_a_key_that_is_shut_out_is_refused_on_every_replica(
    tmp_path, database_url, engine, shut_out, said
):
    async with two_replicas(tmp_path, database_url, engine) as replicas:
        key, key_id = await make_key(replicas)
        for _ in range(3):  # remembered by both
            assert await replicas.answers(key) == ["OK", "OK"]
        await shut_out(replicas, key_id)

        async def is_refused_everywhere():
            return await replicas.answers(key) == [said, said]

        await until(is_refused_everywhere)


def test_the_time_between_looks_leaves_two_seconds_for_a_revocation():
    """A remembered key counts for MAX_AGE_S after the last look that began before a revocation."""
    assert POLL_INTERVAL_S < MAX_AGE_S < REVOCATION_S


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


async def test_a_look_vouches_for_a_short_time_only(engine):
    clock = Clock()
    counter = ChangeCounter(engine, clock=clock)
    assert counter.generation() is None
    await counter.look()
    assert counter.generation() == 0
    clock.now += MAX_AGE_S - 0.01
    assert counter.generation() == 0
    clock.now += 0.01
    assert counter.generation() is None


async def test_a_look_sees_what_was_committed_before_it(engine):
    counter = ChangeCounter(engine)
    await counter.look()
    async with begin_write(engine) as connection:
        await count_change(connection)
    assert counter.generation() == 0
    await counter.look()
    assert counter.generation() == 1


async def test_while_the_database_is_away_nothing_is_vouched_for_and_it_recovers(engine, caplog):
    clock = Clock()
    counter = ChangeCounter(engine, interval_s=0.01, clock=clock)
    running = asyncio.create_task(counter.run())
    await until(lambda: counter.generation() == 0)
    async with begin_write(engine) as connection:
        await connection.exec_driver_sql("ALTER TABLE changes RENAME TO hidden")
    await until(lambda: "changes of keys unknown" in caplog.messages)
    clock.now += MAX_AGE_S
    assert counter.generation() is None
    async with begin_write(engine) as connection:
        await connection.exec_driver_sql("ALTER TABLE hidden RENAME TO changes")
    await until(lambda: counter.generation() == 0)
    running.cancel()
    assert caplog.messages.count("changes of keys unknown") == 1
