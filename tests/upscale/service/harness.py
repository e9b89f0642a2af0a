"""A real upscale server on a free port, with a network in closed form behind it."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from PIL import Image
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from torch import Tensor

from limner.v1 import model_pb2_grpc, upscale_pb2, upscale_pb2_grpc
from services.upscale.server import UpscaleServer, open_upscale_server
from services.upscale.settings import UpscaleSettings
from tests.upscale.doubles import NearestUpscaler
from tests.upscale.tiny import srvgg_weights

Request = upscale_pb2.UpscaleImageRequest
Response = upscale_pb2.UpscaleImageResponse


class GatedUpscaler(NearestUpscaler):
    """Makes one call for each permit, as many as it likes once it is `open`."""

    def __init__(self, name: str = "nearest") -> None:
        super().__init__(name)
        self._permits = threading.Semaphore(0)
        self._open = False

    def permit(self, call_count: int) -> None:
        self._permits.release(call_count)

    def open(self) -> None:
        self._open = True
        self._permits.release()

    def enlarge(self, tiles_B3hw: Tensor, denoise_strength: float | None) -> Tensor:
        if not self._open:
            self._permits.acquire()
        return super().enlarge(tiles_B3hw, denoise_strength)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server with stubs of a client."""

    server: UpscaleServer
    registry: CollectorRegistry
    upscale: upscale_pb2_grpc.UpscaleServiceAsyncStub
    models: model_pb2_grpc.ModelServiceAsyncStub
    channel: grpc.aio.Channel

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@asynccontextmanager
async def serving(
    folder: Path, *models: NearestUpscaler, wait: bool = True, **settings: object
) -> AsyncIterator[Running]:
    """Serve `models`, whose names are those of weights in `folder`; with `wait`, once loaded."""
    by_name = {model.name: model for model in models or (NearestUpscaler(),)}
    for name in by_name:
        save_file(srvgg_weights(), folder / f"{name}.safetensors")
    values: dict[str, object] = {
        "address": "127.0.0.1:0",
        "folders": (folder,),
        "models": tuple(by_name),
    }
    registry = CollectorRegistry()
    async with open_upscale_server(
        UpscaleSettings(**(values | settings)),  # type: ignore[arg-type]
        registry,
        load=lambda entry, options: by_name[entry.name],
    ) as server:
        if wait:
            await server.loaded()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Running(
                server=server,
                registry=registry,
                upscale=upscale_pb2_grpc.UpscaleServiceStub(channel),
                models=model_pb2_grpc.ModelServiceStub(channel),
                channel=channel,
            )


async def until(holds: Callable[[], bool]) -> None:
    """Wait until `holds`; the test's own timeout ends what never does."""
    while not holds():  # noqa: ASYNC110 -- what is waited for happens on the device thread
        await asyncio.sleep(0.002)


def kinds(responses: list[Response]) -> list[str | None]:
    """Which event each response carries."""
    return [response.WhichOneof("event") for response in responses]


def picture(responses: list[Response]) -> bytes:
    """The artifact in a stream."""
    return b"".join(r.artifact.data for r in responses if r.HasField("artifact"))


def opened(data: bytes) -> Image.Image:
    """Decode a picture completely."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def png(pixels: np.ndarray, **options: object) -> bytes:
    """A file of pixels (H, W, C)."""
    buffer = io.BytesIO()
    plain = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    Image.fromarray(plain).save(buffer, "PNG", **options)
    return buffer.getvalue()
