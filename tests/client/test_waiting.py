"""How long a server that is not ready is waited for."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from limner.v1 import generation_pb2
from services.client import AsyncClient, Client, LimnerError, RetryPolicy, Unavailable
from tests.client import scripted_server as script
from tests.client.conftest import Limner
from tests.client.scripted_server import ScriptedServer


def starting(server: ScriptedServer, count: int, reason: str = "NOT_READY") -> None:
    """Have the server draw from call `count` on; before it is unavailable for `reason`."""

    def generate(
        request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext
    ) -> script.Responses:
        if server.call_count <= count:
            info = script.error_info(reason)
            script.fail(context, grpc.StatusCode.UNAVAILABLE, "the models are loaded", info)
        yield from script.draw(request, context)

    server.generate = generate


def test_a_server_that_is_not_ready_is_asked_as_long_as_the_policy_says(
    server: ScriptedServer,
) -> None:
    starting(server, 9)
    heard: list[LimnerError] = []
    policy = RetryPolicy(max_attempts=1, initial_delay_s=0, patience_s=60, on_wait=heard.append)
    with Client(server.address, retry=policy) as client:
        assert client.generate("dog").images
    assert [str(each) for each in heard] == ["the models are loaded"] * 9


@pytest.mark.parametrize(
    ("reason", "patience_s", "timeout_s", "delay_s"),
    [
        ("NO_BACKEND", 60.0, None, 0.1),
        ("NOT_READY", 0.0, None, 0.1),
        ("NOT_READY", 600.0, 60.0, 300.0),  # the next attempt would come too late
    ],
)
def test_patience_ends_with_the_reason_the_patience_and_the_timeout(
    server: ScriptedServer,
    reason: str,
    patience_s: float,
    timeout_s: float | None,
    delay_s: float,
) -> None:
    starting(server, 1000, reason)
    policy = RetryPolicy(
        max_attempts=2, initial_delay_s=delay_s, max_delay_s=300.0, patience_s=patience_s
    )
    with Client(server.address, retry=policy) as client, pytest.raises(Unavailable):
        client.generate("dog", timeout_s=timeout_s)
    assert server.call_count <= 2


def test_the_command_waits_and_says_so_once(
    limner: Limner, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    starting(server, 4)
    assert limner("generate", "dog", "-o", "d.png") == 0
    said = capsys.readouterr().err
    assert said.count("the models are loaded: waiting for up to 120 s\n") == 1


def test_the_command_waits_in_silence_where_it_is_asked_to_be_quiet(
    limner: Limner, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    starting(server, 4)
    assert limner("generate", "dog", "-qo", "d.png") == 0
    assert capsys.readouterr() == ("", "")


def test_both_clients_watch_usage_beyond_the_end_of_their_server(server: ScriptedServer) -> None:
    heard: list[LimnerError] = []
    policy = RetryPolicy(max_attempts=1, initial_delay_s=0, patience_s=60, on_wait=heard.append)

    async def with_await() -> list[int]:
        async with AsyncClient(server.address, retry=policy) as client:
            return [usage.request_count async for usage in client.watch_usage()]

    server.usage_counts = [1, 1, 2, 2]
    with Client(server.address, retry=policy) as client:
        assert [usage.request_count for usage in client.watch_usage()] == [1, 2]
    server.usage_counts = [1, 1, 2, 2]
    assert asyncio.run(with_await()) == [1, 2]
    assert [str(each) for each in heard] == ["Socket closed"] * 6


def test_a_server_that_never_answered_is_not_watched_for(server: ScriptedServer) -> None:
    server.stop()
    policy = RetryPolicy(max_attempts=2, initial_delay_s=0, patience_s=60)
    with Client(server.address, retry=policy) as client, pytest.raises(Unavailable):
        next(client.watch_usage())
