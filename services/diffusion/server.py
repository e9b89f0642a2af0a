"""The diffusion server: its parts put together.

`__main__` runs it with the environment's settings, tests with their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
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
from services.runtime.device_server import DeviceServer
from services.runtime.device_worker import DeviceWorker
from services.runtime.server import GrpcServer
from services.storage.catalog import FolderCatalog

LoadModel: TypeAlias = Callable[[ModelSpec], LoadedModel]
DiffusionServer: TypeAlias = DeviceServer[LoadedModel, Batcher]


@asynccontextmanager
async def open_diffusion_server(
    settings: DiffusionSettings, registry: CollectorRegistry, *, load: LoadModel = load_model
) -> AsyncIterator[DiffusionServer]:
    """A running server; on leaving, it is drained without a grace unless that was done.

    Raises OSError for an address in use.
    """
    metrics = DiffusionMetrics(registry)
    worker, encoder = DeviceWorker("device"), ImageEncoder()
    trained = _trained_models(settings, load)
    catalog = ModelCatalog(default_model=settings.default_model, trained=trained)
    batcher = Batcher(
        limits=BatcherLimits(
            max_batch_rows=settings.max_batch_rows,
            max_queued_requests=settings.max_queued_requests,
        ),
        metrics=metrics,
    )
    generation = ImageGeneration(
        catalog=catalog, batcher=batcher, wake=worker.wake, encoder=encoder, metrics=metrics
    )
    grpc = GrpcServer(
        settings.address,
        grpc_services(generation, catalog),
        grace_s=settings.grace_s,
        registry=registry,
        credentials=settings.server_credentials(),
        health_address=settings.health_address,
    )
    server = DeviceServer(
        grpc,
        worker=worker,
        batcher=batcher,
        loads=[partial(load, spec) for spec in settings.model_specs()],
        settle=settle_torch_threads,
        offer=catalog.offer,
    )
    try:
        async with server.running(), _sweeping(trained):
            yield server
    finally:
        encoder.close()


@asynccontextmanager
async def _sweeping(trained: TrainedModels | None) -> AsyncIterator[None]:
    if trained is None:
        yield
        return
    sweeping = asyncio.create_task(trained.sweep())
    try:
        yield
    finally:
        sweeping.cancel()


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
