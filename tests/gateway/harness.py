"""A running gateway with a key, for tests: real server, real channel, real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from limner.v1 import generation_pb2 as pb
from limner.v1 import generation_pb2_grpc
from services.gateway.admission import AdmissionRequest, Delivery, MetadataPairs
from services.gateway.backend import LinkOptions
from services.gateway.gateway import Gateway, open_gateway
from services.gateway.key_store import KeyStore
from services.gateway.schema import migrate
from services.gateway.scopes import ALL_SCOPES
from services.gateway.settings import GatewaySettings
from services.gateway.tiers import UNLIMITED_TIER, Tier
from services.storage.database import close_engine, open_engine
from tests.gateway.actors import ACTOR
from tests.gateway.fake_backend import FakeBackend
from tests.gateway.waiting import until

PEPPER = "pepper-for-tests-0123456789abcdefghij"


@dataclass(kw_only=True)
class CountedLease:
    """A lease that remembers how it was closed."""

    request: AdmissionRequest
    is_immediate: bool = False
    closings: list[str] = field(default_factory=list)
    delivered: Delivery | None = None
    charged: list[int] = field(default_factory=list)

    async def charge(self, index: int) -> None:
        await asyncio.sleep(0.001)
        self.charged.append(index)

    def metadata(self) -> MetadataPairs:
        return ()

    async def settle(self, delivered: Delivery) -> None:
        await asyncio.sleep(0.001)  # a store would take a moment: long enough to be cancelled in
        self.delivered = delivered
        self.closings.append("settle")

    async def refund(self) -> None:
        await asyncio.sleep(0.001)
        self.closings.append("refund")


@dataclass(kw_only=True)
class CountedAdmission:
    """Lets everybody in and remembers every lease."""

    is_immediate: bool = False
    leases: list[CountedLease] = field(default_factory=list)

    async def admit(self, request: AdmissionRequest) -> CountedLease:
        await asyncio.sleep(0.001)
        lease = CountedLease(request=request)
        self.leases.append(lease)
        return lease

    async def describe(self, account: str, tier: Tier) -> MetadataPairs:
        return ()

    async def reconcile(self, account: str) -> None:
        pass

    @property
    def closings(self) -> list[list[str]]:
        return [lease.closings for lease in self.leases]


@dataclass(kw_only=True)
class Harness:
    """What a test needs of a gateway."""

    gateway: Gateway
    registry: CollectorRegistry
    admission: CountedAdmission
    store: KeyStore
    key: str
    key_id: str
    channel: grpc.aio.Channel

    @property
    def authorization(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),)

    def generate(
        self,
        prompt: str = "picture",
        *,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        channel: grpc.aio.Channel | None = None,
        **fields: Any,
    ) -> Any:
        """A call with the key, by default to the gateway; an async iterator of events."""
        request = pb.GenerateImageRequest(prompt=prompt, **fields)
        stub = generation_pb2_grpc.GenerationServiceStub(channel or self.channel)
        metadata = (*self.authorization, *metadata)
        return stub.GenerateImage(request, timeout=timeout, metadata=metadata)

    def metric(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, labels)
        return 0.0 if value is None else value


def settings(tmp_path: Path, targets: list[str], **changes: Any) -> GatewaySettings:
    values: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "database_url": SecretStr(f"sqlite+aiosqlite:///{tmp_path}/gateway.db"),
        "key_pepper": SecretStr(PEPPER),
        "backends": tuple(targets),
        "grace_s": 1.0,
    }
    return GatewaySettings(**(values | changes))


@asynccontextmanager
async def running_gateway(
    tmp_path: Path,
    *backends: FakeBackend | str,
    options: LinkOptions | None = None,
    wait: bool = True,
    tier: str = UNLIMITED_TIER,
    counted: bool = True,
    **changes: Any,
) -> AsyncIterator[Harness]:
    """A gateway in front of `backends`, which are all known to it when the block begins.

    The key's account is in `tier`. With `counted` everybody is let in and remembered; without, the
    gateway's own admission decides.
    """
    targets = [each if isinstance(each, str) else each.address for each in backends]
    configured = settings(tmp_path, targets, **changes)
    engine = open_engine(configured.database_url.get_secret_value())
    await migrate(engine)
    store = KeyStore(engine=engine)
    key, record = await store.create_key(
        account="acme",
        name="test",
        pepper=PEPPER.encode(),
        actor=ACTOR,
        scopes=ALL_SCOPES,
        new_account_tier=tier,
    )
    registry, admission = CollectorRegistry(), CountedAdmission()
    async with (
        aclosing_engine(engine),
        open_gateway(
            configured,
            registry=registry,
            admission=admission if counted else None,
            options=options,
        ) as gateway,
    ):
        if wait:
            await until(lambda: serving_count(gateway) == len(backends))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
            yield Harness(
                gateway=gateway,
                registry=registry,
                admission=admission,
                store=store,
                key=key.text,
                key_id=record.key_id,
                channel=channel,
            )


@asynccontextmanager
async def aclosing_engine(engine: AsyncEngine) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await close_engine(engine)


def serving_count(gateway: Gateway) -> int:
    return sum(backend.serving for backend in gateway.pool.backends)


async def failure(call: Any, *, timeout_s: float = 30) -> grpc.aio.AioRpcError:
    """The error that a stream ends with."""
    try:
        async with asyncio.timeout(timeout_s):
            async for _ in call:
                pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call did not fail")


def error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo that every error carries."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def reason(error: grpc.aio.AioRpcError) -> str:
    return error_info(error).reason
