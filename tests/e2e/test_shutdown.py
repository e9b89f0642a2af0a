"""Services that die or are told to stop while they work, as every client sees it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from services.client import Client, GeneratedImage, GenerationStream, Progress, Unavailable
from tests.e2e.running_suite import LIMNER, ONCE, RunningService, RunningSuite, wait_for

_STREAM_COUNT = 3


def start_streams(
    stack: ExitStack, client: Client, options: dict[str, Any]
) -> list[GenerationStream]:
    """Streams that have all begun to draw."""
    streams = [
        stack.enter_context(client.stream_generate("a dog", **options))
        for _ in range(_STREAM_COUNT)
    ]
    for stream in streams:
        next(event for event in stream if isinstance(event, Progress))
    return streams


def drain(stream: GenerationStream) -> int:
    """Read a stream to its end and return the number of pictures."""
    return sum(isinstance(event, GeneratedImage) for event in stream)


def drain_all(pool: ThreadPoolExecutor, streams: list[GenerationStream]) -> list[Future[int]]:
    return [pool.submit(drain, stream) for stream in streams]


@pytest.fixture
def diffusion(suite: RunningSuite) -> Iterator[RunningService]:
    """The diffusion server, to be ended; started again afterwards."""
    yield suite.diffusion
    suite.diffusion.start()


@pytest.fixture
def gateway(suite: RunningSuite) -> Iterator[RunningService]:
    """The gateway, to be ended; started again afterwards."""
    yield suite.gateway
    suite.gateway.start()


def test_a_killed_diffusion_server_is_unavailable_at_once(
    suite: RunningSuite, diffusion: RunningService, folder: Path
) -> None:
    options = suite.endless_run()
    line = ["generate", "a dog", "-o", "dog.png", "--steps", str(options["step_count"])]
    line += ["--samples", str(options["sample_count"])]
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        client = stack.enter_context(suite.client())
        command = subprocess.Popen(
            [*LIMNER, *line], cwd=folder, env=suite.environment(), stderr=subprocess.PIPE
        )
        stack.enter_context(command)
        wait_for(lambda: suite.metric("diffusion_running") > 0, "the command's request runs")
        streams = start_streams(stack, client, options)
        assert diffusion.end(signal.SIGKILL) == -signal.SIGKILL
        ends = drain_all(pool, streams)
        for end in ends:
            with pytest.raises(Unavailable) as caught:
                end.result(timeout=60)
            assert caught.value.reason == "BACKEND_LOST"
        _, errors = command.communicate(timeout=60)
    assert command.returncode == 1
    assert b"Traceback" not in errors
    assert errors.splitlines()[-1].startswith(b"limner: ")
    assert list(folder.iterdir()) == []
    wait_for(lambda: suite.metric("gateway_inflight") == 0, "the gateway holds no stream")


def test_the_gateway_finds_a_diffusion_server_that_came_back(suite: RunningSuite) -> None:
    with suite.client() as client:
        assert client.generate("a dog").images


def test_a_diffusion_server_told_to_stop_finishes_what_it_has(
    suite: RunningSuite, diffusion: RunningService
) -> None:
    options = suite.long_run()
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        client = stack.enter_context(suite.client(retry=ONCE))
        streams = start_streams(stack, client, options)
        diffusion.process.send_signal(signal.SIGTERM)
        ends = drain_all(pool, streams)
        wait_for(lambda: _is_refused(client), "new requests are refused")
        assert [end.done() for end in ends] == [False] * _STREAM_COUNT
        expected = [options["sample_count"]] * _STREAM_COUNT
        assert [end.result(timeout=90) for end in ends] == expected
    assert diffusion.wait_for_end() == 0


def test_a_gateway_told_to_stop_finishes_what_it_relays(
    suite: RunningSuite, gateway: RunningService
) -> None:
    options = suite.long_run()
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        client = stack.enter_context(suite.client(retry=ONCE))
        streams = start_streams(stack, client, options)
        gateway.process.send_signal(signal.SIGTERM)
        ends = drain_all(pool, streams)
        wait_for(lambda: _is_refused(client), "new requests are refused")
        assert [end.done() for end in ends] == [False] * _STREAM_COUNT
        expected = [options["sample_count"]] * _STREAM_COUNT
        assert [end.result(timeout=90) for end in ends] == expected
    assert gateway.wait_for_end() == 0


def _is_refused(client: Client) -> bool:
    """Tell whether a server answers a new request with UNAVAILABLE; other failures are raised."""
    try:
        with client.stream_generate("a dog") as stream:
            next(stream)
    except Unavailable as error:
        return error.reason != ""  # without a reason nobody listened
    return False
