"""A gateway, put together: database, keys, backends and the server in front of them.

Called by `__main__` and by tests. Everything it needs is passed in; it reads no environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine

from limner.v1 import account_pb2, admin_pb2, model_pb2
from services.gateway.account_servicer import AccountServicer
from services.gateway.account_store import AccountStore
from services.gateway.admin_servicer import AdminServicer
from services.gateway.admission import Admission, AdmissionControl
from services.gateway.admission.memory_store import InMemoryStore
from services.gateway.admission.redis_store import RedisStore
from services.gateway.announcement import LimitAnnouncer
from services.gateway.audit import AuditLog
from services.gateway.authentication import Authenticator
from services.gateway.backend import LinkOptions
from services.gateway.changes import ChangeCounter
from services.gateway.configuration_file import FollowedFile
from services.gateway.generation_method import GenerationMethod
from services.gateway.group_commit import GroupedLedger
from services.gateway.key_cache import KeyCache
from services.gateway.key_store import KeyStore
from services.gateway.key_uses import KeyUses
from services.gateway.ledger import Ledger
from services.gateway.metrics import GatewayMetrics
from services.gateway.model_servicer import ModelServicer
from services.gateway.open_calls import OpenCalls
from services.gateway.pool import BackendPool
from services.gateway.pricing import read_prices
from services.gateway.relay_servicer import RelayServicer
from services.gateway.relayed_method import RelayedMethod
from services.gateway.schema import migrate
from services.gateway.settings import GatewaySettings
from services.gateway.tiers import TierCatalog
from services.gateway.trainer_link import TRAINING_SERVICE
from services.gateway.training import Training, open_training
from services.gateway.upscale_method import UpscaleMethod
from services.runtime.server import GrpcServer, Service
from services.storage.database import close_engine, open_engine

MODEL_SERVICE = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
ACCOUNT_SERVICE = account_pb2.DESCRIPTOR.services_by_name["AccountService"].full_name
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Gateway:
    """A gateway that serves at `port`."""

    server: GrpcServer
    port: int
    pool: BackendPool
    training: Training | None
    """None without a trainer."""


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
    be opened, OSError or RuntimeError when the address is taken or a certificate cannot be used.
    """
    engine = open_engine(settings.database_url.get_secret_value())
    try:
        await migrate(engine)
        async with _serving(
            settings,
            engine=engine,
            registry=registry,
            admission=admission,
            options=options
            or LinkOptions(keepalive_time_s=settings.keepalive_time_s, tls=settings.backend_tls()),
        ) as gateway:
            yield gateway
    finally:
        await close_engine(engine)


@asynccontextmanager
async def _serving(
    settings: GatewaySettings,
    *,
    engine: AsyncEngine,
    registry: CollectorRegistry,
    admission: Admission | None,
    options: LinkOptions,
) -> AsyncIterator[Gateway]:
    changed, draining = asyncio.Event(), asyncio.Event()
    metrics = GatewayMetrics(registry)
    store = KeyStore(engine=engine)
    counter, uses = ChangeCounter(engine), KeyUses(store)
    keys = KeyCache(store, counter)
    open_calls = OpenCalls(keys, counter)
    tiers = TierCatalog(settings.tiers_file, on_failure=metrics.file_errors.labels("tiers").inc)
    prices = FollowedFile(
        "prices",
        settings.prices_file,
        read_prices,
        on_failure=metrics.file_errors.labels("prices").inc,
    )
    pool = BackendPool(
        settings.backends,
        default_model=settings.default_model,
        options=options,
        on_change=changed.set,
    )
    pepper = settings.key_pepper.get_secret_value().encode()
    ledger = Ledger(engine=engine)
    control = _admission_control(settings, ledger, metrics)
    door = admission or control
    methods: list[RelayedMethod[Any]] = [
        GenerationMethod(prices),
        UpscaleMethod(prices),
    ]
    relays = [
        RelayServicer(method, pool, admission=door, tiers=tiers, metrics=metrics)
        for method in methods
    ]
    training = open_training(
        settings.trainer,
        engine,
        options=options,
        admission=door,
        tiers=tiers,
        prices=prices,
        metrics=metrics,
        settle_interval_s=settings.training_settle_interval_s,
        on_change=changed.set,
    )
    account = AccountServicer(ledger, tiers, metrics=metrics, draining=draining)

    async def heed_change(account: str) -> None:
        await counter.note_own()
        await door.reconcile(account)

    admin = AdminServicer(
        accounts=AccountStore(engine=engine),
        keys=store,
        ledger=ledger,
        audit=AuditLog(engine=engine),
        tiers=tiers,
        pepper=pepper,
        metrics=metrics,
        on_change=heed_change,
    )
    server = GrpcServer(
        settings.address,
        (
            *(Service(name=relay.service, register=relay.register) for relay in relays),
            Service(name=MODEL_SERVICE, register=ModelServicer(pool).register),
            Service(name=ACCOUNT_SERVICE, register=account.register),
            Service(name=ADMIN_SERVICE, register=admin.register),
            *([training.service] if training else []),
        ),
        draining=draining,
        credentials=settings.server_credentials(),
        health_address=settings.health_address,
        grace_s=settings.grace_s,
        identify=Authenticator(
            keys,
            pepper=pepper,
            tiers=tiers,
            metrics=metrics,
            on_use=uses.note,
            on_open=open_calls.note,
        ).identify,
        announce=LimitAnnouncer(admission=door, tiers=tiers).announce,
        registry=registry,
    )
    port = await server.start()
    async with asyncio.TaskGroup() as group:
        following = group.create_task(pool.run())
        reporting = group.create_task(_report_health(server, pool, changed, methods, training))
        looking = [group.create_task(each.run()) for each in (counter, uses, control)]
        looking += [group.create_task(each.follow()) for each in (tiers, prices)]
        looking.append(group.create_task(open_calls.run(server.end_call)))
        if training:
            looking.append(group.create_task(training.run()))
        try:
            yield Gateway(server=server, port=port, pool=pool, training=training)
        finally:
            reporting.cancel()
            await server.drain()
            for task in (following, *looking):
                task.cancel()
            await uses.flush()
            await control.close()


def _admission_control(
    settings: GatewaySettings, ledger: Ledger, metrics: GatewayMetrics
) -> AdmissionControl:
    """Limits shared through Redis where there is one, in memory otherwise."""
    url = settings.redis_url
    return AdmissionControl(
        InMemoryStore()
        if url is None
        else RedisStore(url.get_secret_value(), timeout_s=settings.redis_timeout_s),
        GroupedLedger(ledger) if ledger.engine.dialect.name == "sqlite" else ledger,
        metrics=metrics,
        replica_count=settings.replica_count,
        lease_s=settings.lease_s,
        reconcile_interval_s=settings.reconcile_interval_s,
    )


async def _report_health(
    server: GrpcServer,
    pool: BackendPool,
    changed: asyncio.Event,
    methods: Sequence[RelayedMethod[Any]],
    training: Training | None,
) -> None:
    """Lets the health of the services follow the backends until cancelled."""
    server.set_serving(True, "")
    server.set_serving(True, ACCOUNT_SERVICE)
    server.set_serving(True, ADMIN_SERVICE)
    while True:
        changed.clear()
        for method in methods:
            server.set_serving(pool.serves(method.tasks), method.service)
        server.set_serving(pool.serving, MODEL_SERVICE)
        if training:
            server.set_serving(training.serving, TRAINING_SERVICE)
        await changed.wait()
