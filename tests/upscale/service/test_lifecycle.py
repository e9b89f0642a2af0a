"""Starting, draining and failing of the upscale server, and the choice of its models."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterable
from pathlib import Path

import grpc
import pytest
import torch
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import save_file
from torch import Tensor

from services.local.ports import free_port
from services.upscale.server import choose_entries
from services.upscale.settings import UpscaleSettings
from services.upscale.weights.errors import WeightsMissingError
from tests.upscale.doubles import NearestUpscaler, noise
from tests.upscale.service.harness import (
    GatedUpscaler,
    Request,
    Response,
    picture,
    png,
    serving,
    until,
)
from tests.upscale.tiny import srvgg_weights


async def _health(channel: grpc.aio.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="limner.v1.UpscaleService")
    return int((await stub.Check(request)).status)


async def test_the_server_serves_once_its_models_are_warm(tmp_path: Path) -> None:
    model = GatedUpscaler()
    model.warm_up = lambda: model.enlarge(torch.zeros(1, 3, 16, 16), None)  # type: ignore[method-assign]
    async with serving(tmp_path, model, wait=False) as running:
        assert await _health(running.channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(AioRpcError) as raised:
            await running.upscale.UpscaleImage(Request(image=png(noise(8, 8)))).read()
        assert raised.value.code() is StatusCode.UNAVAILABLE
        model.open()
        await running.server.loaded()
        assert await _health(running.channel) == health_pb2.HealthCheckResponse.SERVING


async def test_draining_finishes_what_runs_and_refuses_the_rest(tmp_path: Path) -> None:
    model = GatedUpscaler()
    async with serving(tmp_path, model) as running:
        call = running.upscale.UpscaleImage(Request(image=png(noise(60, 60))))
        events = aiter(call)
        await anext(events)
        draining = asyncio.create_task(running.server.grpc.drain(30))
        await asyncio.sleep(0.05)
        with pytest.raises(AioRpcError) as raised:
            await running.upscale.UpscaleImage(Request(image=png(noise(8, 8)))).read()
        assert raised.value.code() is StatusCode.UNAVAILABLE
        model.open()
        assert picture([response async for response in events])
        await draining


async def test_a_lost_device_ends_every_request_and_is_reported(tmp_path: Path) -> None:
    model = NearestUpscaler()

    def lost(tiles: Tensor) -> None:
        raise torch.AcceleratorError("gone")

    model.fault = lost
    async with serving(tmp_path, model) as running:
        call = running.upscale.UpscaleImage(Request(image=png(noise(8, 8))))
        with pytest.raises(AioRpcError) as raised:
            _ = [response async for response in call]
        assert raised.value.code() is StatusCode.UNAVAILABLE
        await until(running.server.failed.done)


def test_models_asked_for_must_exist_and_others_are_those_that_are_here(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file(srvgg_weights(), tmp_path / f"{name}.safetensors")

    def chosen(**values: object) -> list[str]:
        settings = UpscaleSettings(folders=(tmp_path,), **values)  # type: ignore[arg-type]
        return [entry.name for entry in choose_entries(settings)]

    assert chosen() == ["one", "two"]
    assert chosen(models=("two",)) == ["two"]
    with pytest.raises(WeightsMissingError, match="no upscaler three; there is: one, two"):
        chosen(models=("three",))
    with pytest.raises(WeightsMissingError, match="no upscaler three can be served"):
        chosen(default_model="three")


@pytest.mark.timeout(300)
def test_the_process_drains_on_sigterm_and_names_a_bad_folder(tmp_path: Path) -> None:
    save_file(srvgg_weights(), tmp_path / "tiny.safetensors")
    port, metrics_port = free_port(), free_port()
    environment = {
        **os.environ,
        "LIMNER_UPSCALE_ADDRESS": f"127.0.0.1:{port}",
        "LIMNER_UPSCALE_METRICS_ADDRESS": f"127.0.0.1:{metrics_port}",
        "LIMNER_UPSCALE_FOLDERS": str(tmp_path),
        "LIMNER_UPSCALE_RUNTIME": "torch",
        "LIMNER_UPSCALE_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "services.upscale"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="limner.v1.UpscaleService")
            for answer in stub.Watch(request, wait_for_ready=True):
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    environment["LIMNER_UPSCALE_FOLDERS"] = str(tmp_path / "nowhere")
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "there is no folder" in ended.stderr


async def test_preparing_a_new_strength_holds_no_other_request_up(tmp_path: Path) -> None:
    prepared = threading.Event()

    class SlowToPrepare(NearestUpscaler):
        def prepare(self, denoise_strength: float | None) -> None:
            if denoise_strength != self.default_denoise_strength:
                prepared.wait()

    model = SlowToPrepare(default_denoise_strength=0.5)
    async with serving(tmp_path, model) as running:
        source = png(noise(8, 8))
        new = asyncio.ensure_future(
            _all(running.upscale.UpscaleImage(Request(image=source, denoise_strength=0.2)))
        )
        for _ in range(5):
            assert picture(await _all(running.upscale.UpscaleImage(Request(image=source))))
        assert not new.done()
        prepared.set()
        assert picture(await new)
    assert model.strengths == [0.5] * 5 + [0.2]


async def _all(call: AsyncIterable[Response]) -> list[Response]:
    return [response async for response in call]
