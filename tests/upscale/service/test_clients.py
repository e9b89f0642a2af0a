"""Both clients of the SDK against a real upscale server, and the reader of their streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from limner.v1 import artifact_pb2, upscale_pb2
from services.client import (
    AsyncClient,
    Cancelled,
    Client,
    IncompleteStream,
    InvalidRequest,
    TileProgress,
    UpscaleAccepted,
    UpscaledImage,
    UpscaleResult,
)
from services.client.upscale_request import UpscaleReader
from tests.upscale.doubles import noise, repeated
from tests.upscale.service.harness import GatedUpscaler, opened, png, serving, until


def _check(result: UpscaleResult, pixels: np.ndarray) -> None:
    assert (result.accepted.width, result.accepted.height) == pixels.shape[1::-1]
    assert result.image.mime_type == "image/png"
    assert np.array_equal(np.asarray(opened(result.image.data)), pixels)


async def test_both_clients_get_the_picture_and_its_progress(tmp_path: Path) -> None:
    pixels = noise(60, 100)
    source = tmp_path / "in.png"
    source.write_bytes(png(pixels))
    progress: list[TileProgress] = []
    async with serving(tmp_path) as running:
        address = f"127.0.0.1:{running.server.port}"
        async with AsyncClient(address) as client:
            _check(await client.upscale(source, on_progress=progress.append), repeated(pixels, 4))
            events = [event async for event in client.stream_upscale(png(pixels), scale=2.0)]

        def synchronous() -> UpscaleResult:
            with Client(address) as client:
                return client.upscale(source, output_format="png", scale=4)

        _check(await asyncio.to_thread(synchronous), repeated(pixels, 4))
    assert progress[-1].completed_tile_count == progress[-1].total_tile_count
    assert isinstance(events[0], UpscaleAccepted)
    assert isinstance(events[-1], UpscaledImage)
    assert events[-1].width == 200


async def test_wrong_options_are_seen_before_and_violations_after_the_call(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as running,
        AsyncClient(f"127.0.0.1:{running.server.port}") as client,
    ):
        with pytest.raises(ValueError, match="unknown output format 'gif'"):
            await client.upscale(b"", output_format="gif")
        with pytest.raises(TypeError, match="unknown option: size"):
            await client.upscale(b"", size=3)  # type: ignore[call-arg]
        with pytest.raises(FileNotFoundError):
            await client.upscale(tmp_path / "nowhere.png")
        with pytest.raises(InvalidRequest) as raised:
            await client.upscale(b"no picture", scale=7)
    assert {each.field for each in raised.value.violations} == {"image", "scale"}


async def test_closing_a_stream_frees_the_device(tmp_path: Path) -> None:
    model = GatedUpscaler()
    async with (
        serving(tmp_path, model) as running,
        AsyncClient(f"127.0.0.1:{running.server.port}") as client,
    ):
        stream = client.stream_upscale(png(noise(60, 400)))
        assert isinstance(await anext(stream), UpscaleAccepted)
        stream.close()
        with pytest.raises(Cancelled):
            await anext(stream)
        await until(lambda: running.server.grpc.in_flight == 0)
        model.open()
        await until(lambda: running.server.batcher.running_count == 0)
        assert len(model.calls) <= 1


def test_a_stream_without_its_picture_is_incomplete() -> None:
    accepted = upscale_pb2.UpscaleImageResponse(
        accepted=upscale_pb2.UpscaleAccepted(request_id="r1")
    )
    reader = UpscaleReader()
    with pytest.raises(IncompleteStream, match="before the request was accepted"):
        reader.finish()
    reader.read(accepted)
    with pytest.raises(IncompleteStream, match="the picture is missing") as raised:
        reader.finish()
    assert raised.value.request_id == "r1"
    headless = upscale_pb2.UpscaleImageResponse(
        artifact=artifact_pb2.ArtifactChunk(data=b"x", last=True)
    )
    with pytest.raises(IncompleteStream, match="does not begin with its description"):
        reader.read(headless)
