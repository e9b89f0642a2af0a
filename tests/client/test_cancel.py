"""Closing a stream ends the call on the server, in every way a caller can close it."""

from __future__ import annotations

import asyncio
import pickle
import threading

import grpc
import pytest

from limner.v1 import generation_pb2
from services.client import Accepted, AsyncClient, Cancelled, Client, RetryPolicy, Unavailable
from tests.client import scripted_server as script
from tests.client.scripted_server import ScriptedServer


def endless(
    request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext
) -> script.Responses:
    """Accepts, then says nothing until the call is over."""
    over = threading.Event()
    context.add_callback(over.set)
    yield script.accepted(request)
    over.wait(180)


def test_leaving_the_block_cancels_the_call(server: ScriptedServer, client: Client) -> None:
    server.generate = endless
    with client.stream_generate("a dog") as stream:
        assert isinstance(next(stream), Accepted)
        assert not server.ended.is_set()
    assert server.ended.wait(60)
    with pytest.raises(Cancelled):
        next(stream)


def test_close_from_another_thread_wakes_the_reader(server: ScriptedServer, client: Client) -> None:
    server.generate = endless
    stream = client.stream_generate("a dog")
    next(stream)
    threading.Timer(0.1, stream.close).start()
    with pytest.raises(Cancelled):
        next(stream)
    assert server.ended.wait(60)


def test_an_interrupt_while_a_call_starts_ends_the_client(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_state: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("grpc._channel._run_channel_spin_thread", interrupted)
    monkeypatch.setattr("services.client.client._CLOSE_TIMEOUT_S", 0.2)
    server.generate = endless

    with pytest.raises(KeyboardInterrupt), Client(server.address) as client:
        client.generate("a dog")


def test_close_during_the_wait_before_a_retry_ends_it(server: ScriptedServer) -> None:
    failed = threading.Event()

    def generate(
        request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext
    ) -> script.Responses:
        failed.set()
        script.fail(context, grpc.StatusCode.UNAVAILABLE, "later", script.retry_info(60_000))
        yield from ()

    server.generate = generate
    with Client(server.address, retry=RetryPolicy(max_delay_s=100)) as client:
        stream = client.stream_generate("a dog")

        def close() -> None:
            failed.wait(60)
            stream.close()

        closer = threading.Thread(target=close)
        closer.start()
        with pytest.raises((Unavailable, Cancelled)):
            next(stream)
        closer.join()
    assert server.call_count == 1


async def test_leaving_the_asynchronous_block_cancels_the_call(server: ScriptedServer) -> None:
    server.generate = endless
    async with AsyncClient(server.address) as client:
        async with client.stream_generate("a dog") as stream:
            assert isinstance(await anext(stream), Accepted)
        assert await asyncio.to_thread(server.ended.wait, 10)
        with pytest.raises(Cancelled):
            await anext(stream)


async def test_cancelling_the_task_cancels_the_call(server: ScriptedServer) -> None:
    server.generate = endless
    async with AsyncClient(server.address) as client:
        started = asyncio.Event()

        async def generate() -> None:
            async with client.stream_generate("a dog") as stream:
                async for _ in stream:
                    started.set()

        task = asyncio.create_task(generate())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.ended.wait, 10)


async def test_closing_the_asynchronous_stream_wakes_its_reader(server: ScriptedServer) -> None:
    server.generate = endless
    async with AsyncClient(server.address) as client:
        stream = client.stream_generate("a dog")
        await anext(stream)
        asyncio.get_running_loop().call_later(0.1, stream.close)
        with pytest.raises(Cancelled):
            await anext(stream)


def test_errors_survive_pickling(server: ScriptedServer, client: Client) -> None:
    def generate(request: object, context: grpc.ServicerContext) -> script.Responses:
        script.fail(context, grpc.StatusCode.NOT_FOUND, "no", script.error_info("MODEL_NOT_FOUND"))
        yield from ()

    server.generate = generate
    with pytest.raises(Exception, match="no") as caught:
        client.generate("a dog")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value)
    assert again.reason == "MODEL_NOT_FOUND"
