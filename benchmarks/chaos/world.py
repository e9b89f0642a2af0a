"""The servers: Valkey, PostgreSQL, a backend, and the gateways as processes that can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import yaml
from grpc_health.v1 import health_pb2

from benchmarks.chaos.backend import DrawingBackend
from services.gateway.audit import Actor
from services.gateway.key_store import KeyStore
from services.gateway.schema import migrate
from services.gateway.scopes import ALL_SCOPES
from services.storage.database import open_engine
from tests.gateway.admission.redis_server import RedisServer
from tests.postgresql import PostgresServer

LEASE_S = 5.0
PICTURE_MILLICREDITS = 32  # of 1000 × 1000 pixels in one step
TIGHT_MILLICREDITS = 40 * PICTURE_MILLICREDITS
NARROW_CONCURRENCY = 2

_GATEWAY_COUNT = 3
_PEPPER = "not-a-secret-as-it-guards-nothing"
_WIDE = {
    "requests_per_minute": 1_000_000,
    "burst": 1_000_000,
    "concurrent_requests": 1_000,
    "monthly_requests": 10_000_000,
    "monthly_millicredits": 10**12,
    "models": ["*"],
    "max_pixels": 1_000_000,
    "max_step_count": 1,
    "max_sample_count": 3,
    "max_upscaled_megapixels": 1,
    "priority": 0,
    "queue_share": 1.0,
}
_TIERS = {
    "wide": _WIDE,
    "tight": _WIDE | {"monthly_millicredits": TIGHT_MILLICREDITS},
    "narrow": _WIDE | {"concurrent_requests": NARROW_CONCURRENCY},
}


@dataclass(kw_only=True)
class GatewayProcess:
    """A gateway at a port that it keeps over a restart."""

    address: str
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.gateway"],
                env=os.environ | self.environment,
                stdout=log,
                stderr=log,
            )

    def stop(self, sent: signal.Signals) -> None:
        """Ends the process with a signal and waits for its end."""
        assert self.process is not None
        self.process.send_signal(sent)
        self.process.wait()


@dataclass(kw_only=True)
class World:
    """Everything that runs."""

    valkey: RedisServer
    postgresql: PostgresServer
    database_url: str
    backend: DrawingBackend
    gateways: Sequence[GatewayProcess]
    keys: Mapping[str, str]
    """API key by account."""
    tier_of: Mapping[str, str]
    log: Path
    events: list[str] = field(default_factory=list)


@asynccontextmanager
async def open_world(account_count: int) -> AsyncIterator[World]:
    """Starts everything, stops it at the end."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = RedisServer()
        stack.callback(valkey.stop)
        postgresql = PostgresServer()
        stack.callback(postgresql.remove)
        await asyncio.to_thread(postgresql.create)
        await asyncio.to_thread(postgresql.start)
        database_url = await asyncio.to_thread(postgresql.create_database)
        backend = DrawingBackend()
        server, port = await backend.start()
        stack.push_async_callback(server.drain)
        tier_of = {f"account-{n:02}": _tier_name(n) for n in range(account_count)}
        keys = await _make_keys(database_url, tier_of)
        gateways = _gateways(folder, database_url, valkey.url, port)
        for gateway in gateways:
            gateway.start()
            stack.callback(gateway.stop, signal.SIGTERM)
        for gateway in gateways:
            await wait_until_serving(gateway)
        yield World(
            valkey=valkey,
            postgresql=postgresql,
            database_url=database_url,
            backend=backend,
            gateways=gateways,
            keys=keys,
            tier_of=tier_of,
            log=folder,
        )


async def wait_until_serving(gateway: GatewayProcess) -> None:
    """Returns once the gateway relays."""
    request = health_pb2.HealthCheckRequest(service="limner.v1.GenerationService")
    async with grpc.aio.insecure_channel(gateway.address) as channel, asyncio.timeout(120):
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        async for answer in watch(request, wait_for_ready=True):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return


def _tier_name(number: int) -> str:
    return {8: "tight", 9: "narrow"}.get(number % 10, "wide")


async def _make_keys(database_url: str, tier_of: Mapping[str, str]) -> Mapping[str, str]:
    engine = open_engine(database_url)
    await migrate(engine)
    store, keys = KeyStore(engine=engine), {}
    for account, tier in tier_of.items():
        key, _ = await store.create_key(
            account=account,
            name="chaos",
            pepper=_PEPPER.encode(),
            actor=Actor(account="chaos", key_id="", request_id=account),
            scopes=ALL_SCOPES,
            new_account_tier=tier,
        )
        keys[account] = key.text
    await engine.dispose()
    return keys


def _gateways(
    folder: Path, database_url: str, redis_url: str, backend_port: int
) -> Sequence[GatewayProcess]:
    tiers = folder / "tiers.yaml"
    tiers.write_text(yaml.safe_dump({"tiers": _TIERS}))
    variables = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "KEY_PEPPER": _PEPPER,
        "BACKENDS": f"127.0.0.1:{backend_port}",
        "METRICS_ADDRESS": "127.0.0.1:0",
        "TIERS_FILE": str(tiers),
        "REPLICA_COUNT": str(_GATEWAY_COUNT),
        "LEASE_S": str(LEASE_S),
        "RECONCILE_INTERVAL_S": "3",
        "GRACE_S": "1",
        "LOG_LEVEL": "WARNING",
    }
    environment = {f"LIMNER_GATEWAY_{name}": value for name, value in variables.items()}
    return [
        GatewayProcess(
            address=address,
            environment=environment | {"LIMNER_GATEWAY_ADDRESS": address},
            log=folder / f"gateway-{number}.log",
        )
        for number, address in enumerate(_free_addresses(_GATEWAY_COUNT))
    ]


def _free_addresses(count: int) -> list[str]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
