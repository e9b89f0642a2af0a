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
from services.gateway.open_calls import LOOK_INTERVAL_S, OpenCalls
from services.storage.database import begin_write
from tests.gateway.actors import ACTOR
from tests.gateway.fake_backend import backend
from tests.gateway.harness import PEPPER, reason, running_gateway, settings
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


@pytest.mark.parametrize(
    ("shut_out", "said"),
    [(revoke, "KEY_REVOKED"), (rotate, "KEY_EXPIRED"), (suspend, "ACCOUNT_SUSPENDED")],
)
async def test_an_open_stream_of_a_key_that_is_shut_out_ends_on_every_replica(
    tmp_path, database_url, engine, shut_out, said
):
    async with two_replicas(tmp_path, database_url, engine) as replicas:
        key, key_id = await make_key(replicas)
        other, _ = await make_key(replicas)
        request = account_pb2.WatchUsageRequest()
        request.interval.FromSeconds(3600)  # nothing but the key ends the wait
        streams = [watch(stub, key, request) for stub in replicas.stubs]
        bystander = watch(replicas.stubs[0], other, request)
        for stream in (*streams, bystander):
            await stream.read()
        await shut_out(replicas, key_id)
        assert [await end_of(stream) for stream in streams] == [said, said]
        if shut_out is suspend:  # all keys of the account
            assert await end_of(bystander) == said
        assert bystander.done() == (shut_out is suspend)


def watch(stub, key, request):
    return stub.WatchUsage(request, metadata=[("authorization", f"Bearer {key}")])


async def end_of(stream):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    return reason(raised.value)


async def test_a_picture_that_is_being_drawn_for_a_shut_out_key_ends_and_costs_nothing(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        call = door.generate("hang")
        await call.read()
        await door.store.revoke_key(door.key_id, actor=ACTOR)
        error = await failure_of(call)
        assert (error.code(), reason(error)) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_REVOKED")
        await until(lambda: fake.calls[0].outcome == "cancelled")
        assert door.admission.closings == [["refund"]]


async def failure_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    return raised.value


async def test_a_stream_goes_on_while_the_database_is_away(engine):
    """Nobody is shut out because nobody can be asked."""

    class Away:
        def recall(self, digest):
            return None

        async def find_key(self, digest):
            raise OSError("the database is away")

    class Vouching:
        def generation(self):
            return 1

    calls, ended = OpenCalls(Away(), Vouching(), interval_s=0.001), []
    calls.note(b"digest")
    looking = asyncio.create_task(calls.run(lambda task, error: ended.append(task)))
    await asyncio.sleep(0.1)
    assert not looking.done()
    assert ended == []
    looking.cancel()


def test_the_time_between_looks_leaves_two_seconds_for_a_revocation():
    """A remembered key counts for MAX_AGE_S after the last look that began before a revocation;
    a stream lives for one look at the open calls longer.
    """
    assert POLL_INTERVAL_S < MAX_AGE_S < MAX_AGE_S + LOOK_INTERVAL_S < REVOCATION_S


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
