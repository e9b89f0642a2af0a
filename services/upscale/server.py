"""The upscale server: its parts put together.

`__main__` runs it with the environment's settings, tests with their own.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

from prometheus_client import CollectorRegistry

from services.graphs.threads import settle_torch_threads
from services.runtime.device_server import DeviceServer
from services.runtime.device_worker import DeviceWorker
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

LoadUpscaler: TypeAlias = Callable[[Entry, DeviceOptions], LoadedUpscaler]
UpscaleServer: TypeAlias = DeviceServer[LoadedUpscaler, Batcher]

_LOGGER = logging.getLogger(__name__)


@asynccontextmanager
async def open_upscale_server(
    settings: UpscaleSettings, registry: CollectorRegistry, *, load: LoadUpscaler = load_upscaler
) -> AsyncIterator[UpscaleServer]:
    """A running server; on leaving, it is drained without a grace unless that was done.

    Raises `UpscalerLoadError` for models that do not exist, OSError for an address in use.
    """
    entries, options = choose_entries(settings), settings.device_options()
    metrics = UpscaleMetrics(registry)
    worker, codecs = DeviceWorker("device"), CodecThreads()
    catalog = UpscalerCatalog(default_model=settings.default_model)
    batcher = Batcher(limits=settings.batcher_limits(), metrics=metrics)
    upscaling = ImageUpscaling(
        catalog=catalog,
        batcher=batcher,
        wake=worker.wake,
        codecs=codecs,
        metrics=metrics,
        max_output_pixels=settings.max_output_pixels,
    )
    grpc = GrpcServer(
        settings.address,
        grpc_services(upscaling, catalog),
        grace_s=settings.grace_s,
        registry=registry,
        credentials=settings.server_credentials(),
        health_address=settings.health_address,
    )
    server = DeviceServer(
        grpc,
        worker=worker,
        batcher=batcher,
        loads=[partial(load, entry, options) for entry in entries],
        settle=settle_torch_threads,
        offer=catalog.offer,
    )
    try:
        async with server.running():
            yield server
    finally:
        codecs.close()


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
