"""`python -m services.diffusion` with a tiny real model: the process as a supervisor sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from limner.v1 import generation_pb2_grpc
from tests.diffusion.service.harness import Request, open_picture, pictures
from tests.diffusion.tiny import write_emoji_like_model

ROOT = Path(__file__).parents[3]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def _process(**variables: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    port = _free_port()
    settings = {
        "ADDRESS": f"127.0.0.1:{port}",
        "METRICS_ADDRESS": "127.0.0.1:0",
        "RUNTIME": "torch",
        "THREADS": "1",
        **variables,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.diffusion"),
        cwd=ROOT,
        env=os.environ | {f"LIMNER_DIFFUSION_{name}": value for name, value in settings.items()},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _wait_until_serving(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    async for response in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return


async def test_sigterm_under_load_lets_requests_finish_and_exits_with_0(tmp_path: Path) -> None:
    folder = write_emoji_like_model(tmp_path / "tiny")
    async with _process(MODELS=f"tiny={folder}") as (process, port):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await _wait_until_serving(channel)
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            calls = [stub.GenerateImage(Request(prompt="red apple", seed=n)) for n in range(6)]
            first = [await call.read() for call in calls]
            process.send_signal(signal.SIGTERM)
            for accepted, call in zip(first, calls, strict=True):
                assert accepted.HasField("accepted")
                responses = []
                while (response := await call.read()) is not grpc.aio.EOF:
                    responses.append(response)
                (picture,) = pictures(responses)
                assert open_picture(picture).size == (64, 64)
        assert await process.wait() == 0


async def test_sigterm_while_a_model_is_loaded_ends_the_process_at_once_with_0(
    tmp_path: Path,
) -> None:
    folder = write_emoji_like_model(tmp_path / "tiny")
    # A pipe in place of a file: whoever opens it waits for a writer that never comes.
    index = folder / "model_index.json"
    index.unlink()
    os.mkfifo(index)
    async with _process(MODELS=f"tiny={folder}") as (process, port):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            response = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_model_that_is_not_there_ends_the_process_with_1_and_its_reason(
    tmp_path: Path,
) -> None:
    async with _process(MODELS=f"tiny={tmp_path / 'nowhere'}") as (process, _):
        _, stderr = await process.communicate()
        assert process.returncode == 1
        assert "the diffusion server failed: model tiny: there is no folder" in stderr.decode()


async def test_a_bad_setting_ends_the_process_with_its_name() -> None:
    async with _process(MODELS="nameless") as (process, _):
        _, stderr = await process.communicate()
        assert process.returncode == 1
        assert "LIMNER_DIFFUSION_MODELS" in stderr.decode()
