"""The diffusion process: device thread, batcher and gRPC server, put together and taken apart.

`__main__` runs it with the environment's settings, tests with their own. Models are loaded on the
device thread while the server already answers health checks with NOT_SERVING.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from prometheus_client import CollectorRegistry

from services.diffusion.batching import Batcher, BatcherLimits
from services.diffusion.catalog import ModelCatalog
from services.diffusion.families.loading import load_model
from services.diffusion.generation import ImageGeneration
from services.diffusion.metrics import DiffusionMetrics
from services.diffusion.model import LoadedModel, ModelSpec
from services.diffusion.servicer import grpc_services
from services.diffusion.settings import DiffusionSettings
from services.diffusion.trained import TrainedModels
from services.graphs.threads import settle_torch_threads
from services.imaging.encoding import ImageEncoder
from services.runtime.device_worker import DeviceWorker
from services.runtime.errors import UnavailableError
from services.runtime.server import GrpcServer
from services.storage.catalog import FolderCatalog

_LOGGER = logging.getLogger(__name__)

LoadModel: TypeAlias = Callable[[ModelSpec], LoadedModel]


class DiffusionServer:
    """A running diffusion server; see `open_diffusion_server`."""

    def __init__(
        self, settings: DiffusionSettings, *, registry: CollectorRegistry, load: LoadModel
    ) -> None:
        self._specs = settings.model_specs()
        self._load = load
        metrics = DiffusionMetrics(registry)
        self._trained = _trained_models(settings, load)
        self._catalog = ModelCatalog(default_model=settings.default_model, trained=self._trained)
        self._sweeping: asyncio.Task[None] | None = None
        self._worker = DeviceWorker("device")
        self._encoder = ImageEncoder()
        self._loading: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[BaseException] | None = None
        self.batcher = Batcher(
            limits=BatcherLimits(
                max_batch_rows=settings.max_batch_rows,
                max_queued_requests=settings.max_queued_requests,
            ),
            metrics=metrics,
        )
        generation = ImageGeneration(
            catalog=self._catalog,
            batcher=self.batcher,
            wake=self._worker.wake,
            encoder=self._encoder,
            metrics=metrics,
        )
        self.grpc = GrpcServer(
            settings.address,
            grpc_services(generation, self._catalog),
            grace_s=settings.grace_s,
            registry=registry,
            credentials=settings.server_credentials(),
            health_address=settings.health_address,
        )
        self.port = 0
        """Where it listens, once started."""

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Gets what made the server useless, a lost device or a model that does not load."""
        assert self._failed is not None, "the server has not been started"
        return self._failed

    async def start(self) -> None:
        """Listen, and begin to load; raises OSError when the address cannot be bound."""
        self._failed = asyncio.get_running_loop().create_future()
        self._worker.start(self.batcher.tick)
        self._worker.failed.add_done_callback(self._device_failed)
        self.port = await self.grpc.start()
        self._loading = asyncio.create_task(self._load_models())
        self._loading.add_done_callback(self._loaded)
        if self._trained is not None:
            self._sweeping = asyncio.create_task(self._trained.sweep())

    async def loaded(self) -> None:
        """Wait until the models are warm; raises what kept one from it."""
        assert self._loading is not None, "the server has not been started"
        await asyncio.shield(self._loading)

    async def stop(self) -> None:
        """End threads and loading; the gRPC server must have been drained."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._loading is not None and not self._loading.done():
            # What loads cannot be interrupted; its thread ends with the process.
            self._loading.cancel()
        else:
            await self._worker.stop()
        self._encoder.close()

    async def _load_models(self) -> None:
        models: list[LoadedModel] = []
        for spec in self._specs:
            started_at = asyncio.get_running_loop().time()
            model = await self._worker.call(self._load, spec)
            await self._worker.call(model.warm_up)
            duration_s = asyncio.get_running_loop().time() - started_at
            extra = {"model": model.name, "revision": model.revision, "duration_s": duration_s}
            _LOGGER.info("model is ready", extra=extra)
            models.append(model)
        await self._worker.call(settle_torch_threads, models)
        self._catalog.offer(models)
        self.grpc.set_serving(True)

    def _loaded(self, loading: asyncio.Task[None]) -> None:
        error = None if loading.cancelled() else loading.exception()
        if error is not None and not self.failed.done():
            self.failed.set_result(error)

    def _device_failed(self, failed: asyncio.Future[BaseException]) -> None:
        if failed.cancelled():
            return
        self.grpc.set_serving(False)
        self.batcher.abort(UnavailableError(reason="BACKEND_LOST"))
        if not self.failed.done():
            self.failed.set_result(failed.result())


def _trained_models(settings: DiffusionSettings, load: LoadModel) -> TrainedModels | None:
    if settings.catalog_dir is None:
        return None
    return TrainedModels(
        FolderCatalog(settings.catalog_dir),
        {spec.name: spec for spec in settings.model_specs()},
        load=load,
        capacity=settings.max_trained_models,
        runtime=settings.trained_runtime,
    )


@asynccontextmanager
async def open_diffusion_server(
    settings: DiffusionSettings, *, registry: CollectorRegistry, load: LoadModel = load_model
) -> AsyncIterator[DiffusionServer]:
    """Start a server; on leaving, drain it without a grace unless that was done, and stop it."""
    server = DiffusionServer(settings, registry=registry, load=load)
    try:
        await server.start()
        yield server
    finally:
        await server.grpc.drain(0)
        await server.stop()
