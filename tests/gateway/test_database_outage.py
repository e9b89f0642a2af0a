"""A real PostgreSQL that goes away, freezes and comes back under a running gateway."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import grpc
import pytest
from pydantic import SecretStr

from limner.v1 import account_pb2, account_pb2_grpc
from tests.gateway.harness import Harness, reason, running_gateway
from tests.gateway.waiting import until
from tests.postgresql import PostgresServer


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of its own, to break."""
    with PostgresServer.running() as server:
        yield server


async def answer(door: Harness) -> str:
    """OK, or why not."""
    stub = account_pb2_grpc.AccountServiceStub(door.channel)
    try:
        await stub.GetUsage(account_pb2.GetUsageRequest(), metadata=door.authorization, timeout=60)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {reason(error)}"
    return "OK"


async def recovers(door: Harness) -> None:
    async def is_ok() -> bool:
        return await answer(door) == "OK"

    await until(is_ok, timeout_s=90)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGQUIT])
async def test_while_postgresql_is_away_calls_are_unavailable_and_it_recovers_by_itself(
    tmp_path, server, sent
):
    url = SecretStr(server.create_database())
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False, database_url=url) as door:
        assert await answer(door) == "OK"
        await asyncio.to_thread(server.stop, sent=sent)
        assert {await answer(door) for _ in range(5)} == {"UNAVAILABLE NOT_READY"}
        await asyncio.to_thread(server.start, fsync=False)
        await recovers(door)


async def test_while_postgresql_is_frozen_calls_are_unavailable_instead_of_hanging(
    tmp_path, server
):
    url = SecretStr(server.create_database())
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False, database_url=url) as door:
        assert await answer(door) == "OK"
        thaw = server.freeze()
        try:
            answers = await asyncio.gather(*(answer(door) for _ in range(30)))
            assert set(answers) == {"UNAVAILABLE NOT_READY"}
        finally:
            thaw()
        await recovers(door)


async def test_a_gateway_stops_in_bounded_time_while_postgresql_is_frozen(tmp_path, server, caplog):
    url = SecretStr(server.create_database())
    thaw = None
    try:
        async with asyncio.timeout(60):
            async with running_gateway(
                tmp_path, "127.0.0.1:1", wait=False, database_url=url
            ) as door:
                assert await answer(door) == "OK"
                thaw = server.freeze()
        assert "connections to the database were not closed well" in caplog.messages
    finally:
        if thaw is not None:
            thaw()
