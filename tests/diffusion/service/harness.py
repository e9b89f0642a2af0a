"""A real diffusion server on a free port, with a model in closed form behind it."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from PIL import Image
from prometheus_client import CollectorRegistry
from torch import Tensor

from limner.v1 import generation_pb2, generation_pb2_grpc, model_pb2_grpc
from services.diffusion.model import LoadedModel
from services.diffusion.server import DiffusionServer, LoadModel, open_diffusion_server
from services.diffusion.settings import DiffusionSettings
from tests.diffusion.batching.doubles import AnalyticModel

Request = generation_pb2.GenerateImageRequest
Response = generation_pb2.GenerateImageResponse


class GatedModel(AnalyticModel):
    """Makes one denoiser call for each permit, as many as it likes once it is `open`."""

    def __init__(self, name: str = "analytic") -> None:
        super().__init__(name)
        self._permits = threading.Semaphore(0)
        self._open = False
        self.begun_count = 0

    def permit(self, call_count: int) -> None:
        self._permits.release(call_count)

    def open(self) -> None:
        self._open = True
        self._permits.release()

    def denoise(self, latents_BChw: Tensor, timesteps_B: Tensor, context_BLD: Tensor) -> Tensor:
        self.begun_count += 1
        if not self._open:
            self._permits.acquire()
        return super().denoise(latents_BChw, timesteps_B, context_BLD)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server with stubs of a client."""

    server: DiffusionServer
    registry: CollectorRegistry
    generation: generation_pb2_grpc.GenerationServiceAsyncStub
    models: model_pb2_grpc.ModelServiceAsyncStub
    channel: grpc.aio.Channel

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@asynccontextmanager
async def serving(
    *models: LoadedModel, load: LoadModel | None = None, wait: bool = True, **settings: object
) -> AsyncIterator[Running]:
    """Serve `models`; with `wait`, once they are loaded."""
    by_name = {model.name: model for model in models}
    values: dict[str, object] = {
        "address": "127.0.0.1:0",
        "models": tuple(f"{name}=nowhere" for name in by_name) or ("analytic=nowhere",),
    }
    registry = CollectorRegistry()
    async with open_diffusion_server(
        DiffusionSettings(**(values | settings)),  # type: ignore[arg-type]
        registry,
        load=load or (lambda spec: by_name[spec.name]),
    ) as server:
        if wait:
            await server.loaded()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Running(
                server=server,
                registry=registry,
                generation=generation_pb2_grpc.GenerationServiceStub(channel),
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


def pictures(responses: list[Response]) -> list[bytes]:
    """The artifacts in a stream, joined, by index."""
    joined: dict[int, bytes] = {}
    for response in responses:
        if response.HasField("artifact"):
            chunk = response.artifact
            joined[chunk.index] = joined.get(chunk.index, b"") + chunk.data
    return [joined[index] for index in sorted(joined)]


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture completely."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
