"""The upscale process: device thread, batcher and gRPC server, put together and taken apart.

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

from services.graphs.threads import settle_torch_threads
from services.runtime.device_worker import DeviceWorker
from services.runtime.errors import UnavailableError
from services.runtime.server import GrpcServer
from services.upscale.batching import Batcher
from services.upscale.catalog import UpscalerCatalog
from services.upscale.loading import load_upscaler
from services.upscale.metrics import UpscaleMetrics
from services.upscale.model import DeviceOptions, LoadedUpscaler
from services.upscale.servicer import grpc_services
from services.upscale.settings import UpscaleSettings
from services.upscale.upscaling import CodecThreads, ImageUpscaling
from services.upscale.weights.errors import WeightsMissingError
from services.upscale.weights.library import Entry, find_entries

_LOGGER = logging.getLogger(__name__)

LoadUpscaler: TypeAlias = Callable[[Entry, DeviceOptions], LoadedUpscaler]


class UpscaleServer:
    """A running upscale server; see `open_upscale_server`."""

    def __init__(
        self, settings: UpscaleSettings, *, registry: CollectorRegistry, load: LoadUpscaler
    ) -> None:
        self._settings = settings
        self._entries = choose_entries(settings)
        self._load = load
        metrics = UpscaleMetrics(registry)
        self._catalog = UpscalerCatalog(default_model=settings.default_model)
        self._worker = DeviceWorker("device")
        self._codecs = CodecThreads()
        self._loading: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[BaseException] | None = None
        self.batcher = Batcher(limits=settings.batcher_limits(), metrics=metrics)
        upscaling = ImageUpscaling(
            catalog=self._catalog,
            batcher=self.batcher,
            wake=self._worker.wake,
            codecs=self._codecs,
            metrics=metrics,
            max_output_pixels=settings.max_output_pixels,
        )
        self.grpc = GrpcServer(
            settings.address,
            grpc_services(upscaling, self._catalog),
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

    async def loaded(self) -> None:
        """Wait until the models are warm; raises what kept one from it."""
        assert self._loading is not None, "the server has not been started"
        await asyncio.shield(self._loading)

    async def stop(self) -> None:
        """End threads and loading; the gRPC server must have been drained."""
        if self._loading is not None and not self._loading.done():
            # What loads cannot be interrupted; its thread ends with the process.
            self._loading.cancel()
        else:
            await self._worker.stop()
        self._codecs.close()

    async def _load_models(self) -> None:
        models: list[LoadedUpscaler] = []
        options = self._settings.device_options()
        for entry in self._entries:
            started_at = asyncio.get_running_loop().time()
            model = await self._worker.call(self._load, entry, options)
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


def choose_entries(settings: UpscaleSettings) -> list[Entry]:
    """The models to serve, in order: those asked for, else all whose weights are here.

    Raises `UpscalerLoadError` where one that was asked for does not exist or cannot be loaded, and
    where nothing is left.
    """
    entries = find_entries(settings.folders)
    if not settings.models:
        here = [entry for entry in entries.values() if entry.missing() is None]
        for entry in entries.values():
            if reason := entry.missing():
                _LOGGER.info("%s is not served: %s", entry.name, reason)
    else:
        known = ", ".join(entries) or "none"
        for name in settings.models:
            if name not in entries:
                raise WeightsMissingError(f"there is no upscaler {name}; there is: {known}")
        here = [entries[name] for name in settings.models]
    wanted = settings.default_model
    if not here or (wanted and wanted not in {entry.name for entry in here}):
        raise WeightsMissingError(f"no upscaler {wanted or 'at all'} can be served")
    return here


@asynccontextmanager
async def open_upscale_server(
    settings: UpscaleSettings, *, registry: CollectorRegistry, load: LoadUpscaler = load_upscaler
) -> AsyncIterator[UpscaleServer]:
    """Start a server; on leaving, drain it without a grace unless that was done, and stop it.

    Raises `UpscalerLoadError` for models that do not exist, OSError for an address in use.
    """
    server = UpscaleServer(settings, registry=registry, load=load)
    try:
        await server.start()
        yield server
    finally:
        await server.grpc.drain(0)
        await server.stop()
