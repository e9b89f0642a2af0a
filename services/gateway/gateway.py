"""A gateway, put together: database, keys, backends and the server in front of them.

Called by `__main__` and by tests. Everything it needs is passed in; it reads no environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine

from limner.v1 import account_pb2, model_pb2
from services.gateway.admission import Admission, MeteredAdmission, OpenAdmission
from services.gateway.authentication import Authenticator
from services.gateway.backend import GENERATION_SERVICE, LinkOptions
from services.gateway.directory_servicers import AccountServicer, ModelServicer
from services.gateway.generation_servicer import GenerationServicer
from services.gateway.key_cache import KeyCache
from services.gateway.key_store import KeyStore
from services.gateway.metrics import GatewayMetrics
from services.gateway.pool import BackendPool
from services.gateway.settings import GatewaySettings
from services.gateway.tables import metadata
from services.runtime.server import GrpcServer, Service
from services.storage.database import create_schema, open_engine

MODEL_SERVICE = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
ACCOUNT_SERVICE = account_pb2.DESCRIPTOR.services_by_name["AccountService"].full_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Gateway:
    """A gateway that serves at `port`."""

    server: GrpcServer
    port: int
    pool: BackendPool
    keys: KeyCache


@asynccontextmanager
async def open_gateway(
    settings: GatewaySettings,
    *,
    registry: CollectorRegistry,
    admission: Admission | None = None,
    options: LinkOptions | None = None,
) -> AsyncIterator[Gateway]:
    """Serves for the length of the block, then drains within `settings.grace_s`.

    Health is SERVING when the database is open; that of the services that need a backend follows
    the backends. Raises ValueError for a bad database URL, SQLAlchemyError when the database cannot
    be opened, OSError or RuntimeError when the address is taken.
    """
    engine = open_engine(settings.database_url.get_secret_value())
    try:
        await create_schema(engine, metadata)
        async with _serving(
            settings,
            engine=engine,
            registry=registry,
            admission=admission or OpenAdmission(),
            options=options or LinkOptions(keepalive_time_s=settings.keepalive_time_s),
        ) as gateway:
            yield gateway
    finally:
        await engine.dispose()


@asynccontextmanager
async def _serving(
    settings: GatewaySettings,
    *,
    engine: AsyncEngine,
    registry: CollectorRegistry,
    admission: Admission,
    options: LinkOptions,
) -> AsyncIterator[Gateway]:
    changed = asyncio.Event()
    metrics = GatewayMetrics(registry)
    keys = KeyCache(KeyStore(engine=engine))
    pool = BackendPool(
        settings.backends,
        default_model=settings.default_model,
        options=options,
        on_change=changed.set,
    )
    pepper = settings.key_pepper.get_secret_value().encode()
    server = GrpcServer(
        settings.address,
        _services(pool, MeteredAdmission(admission, metrics), metrics),
        grace_s=settings.grace_s,
        identify=Authenticator(keys, pepper=pepper, metrics=metrics).identify,
        registry=registry,
    )
    port = await server.start()
    async with asyncio.TaskGroup() as group:
        following = group.create_task(pool.run())
        reporting = group.create_task(_report_health(server, pool, changed))
        try:
            yield Gateway(server=server, port=port, pool=pool, keys=keys)
        finally:
            reporting.cancel()
            await server.drain()
            following.cancel()


def _services(
    pool: BackendPool, admission: Admission, metrics: GatewayMetrics
) -> tuple[Service, ...]:
    generation = GenerationServicer(pool, admission=admission, metrics=metrics)
    return (
        Service(name=GENERATION_SERVICE, register=generation.register),
        Service(name=MODEL_SERVICE, register=ModelServicer(pool).register),
        Service(name=ACCOUNT_SERVICE, register=AccountServicer().register),
    )


async def _report_health(server: GrpcServer, pool: BackendPool, changed: asyncio.Event) -> None:
    """Lets the health of the services follow the backends until cancelled."""
    server.set_serving(True, "")
    server.set_serving(True, ACCOUNT_SERVICE)
    while True:
        changed.clear()
        server.set_serving(pool.serving, GENERATION_SERVICE)
        server.set_serving(pool.serving, MODEL_SERVICE)
        await changed.wait()
