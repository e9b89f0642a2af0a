"""A gateway in front of a real trainer whose runs do as they are told, for tests of credits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client import CollectorRegistry

from limner.v1 import training_pb2 as pb
from limner.v1 import training_pb2_grpc
from services.gateway.ledger import Ledger, Usage
from services.gateway.period import Period
from services.gateway.tiers import UNLIMITED_TIER
from services.storage.database import open_engine
from services.trainer.server import TrainerServer, open_trainer_server
from tests.gateway.harness import Harness, running_gateway
from tests.gateway.waiting import until
from tests.trainer.service.harness import ToldBackend, create_request, settings, upload

STEP_MILLICREDITS = 20
STEPS = 4
WHOLE = STEPS * STEP_MILLICREDITS

_TIER: dict[str, Any] = {
    "requests_per_minute": 6000,
    "burst": 1000,
    "concurrent_requests": 1000,
    "monthly_requests": None,
    "monthly_millicredits": None,
    "models": ["*"],
    "max_pixels": 4_000_000,
    "max_step_count": 100,
    "max_sample_count": 10,
    "max_upscaled_megapixels": 16,
    "priority": 0,
    "queue_share": 0.5,
}


@dataclass(kw_only=True)
class Door:
    """A gateway, the trainer behind it, and its runs."""

    gateway: Harness
    trainer: TrainerServer
    runs: ToldBackend
    folder: Path

    @property
    def stub(self) -> Any:
        return training_pb2_grpc.TrainingServiceStub(self.gateway.channel)

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        return self.gateway.authorization

    async def upload(self, photos: Path) -> str:
        return await upload(self.stub, photos, metadata=self.key)

    async def create(self, dataset: str, **changes: Any) -> pb.TrainingJob:
        request = create_request(dataset, **changes)
        return (await self.stub.CreateTrainingJob(request, metadata=self.key)).job

    async def end(self, job_id: str) -> pb.TrainingJob:
        """Watch a job until it has ended."""
        request = pb.WatchTrainingJobRequest(id=job_id)
        watched = self.stub.WatchTrainingJob(request, metadata=self.key)
        messages = [message async for message in watched]
        return messages[-1].job

    async def usage(self) -> Usage:
        return await usage(self.folder)

    async def charged(self) -> int:
        return (await self.usage()).charged_millicredits


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def usage(folder: Path) -> Usage:
    """What the ledger has of the account this month."""
    engine = open_engine(f"sqlite+aiosqlite:///{folder}/gateway.db")
    try:
        period = Period.containing(datetime.now(UTC))
        return await Ledger(engine=engine).usage("acme", period)
    finally:
        await engine.dispose()


@asynccontextmanager
async def door(folder: Path, base: Path, **tier: Any) -> AsyncIterator[Door]:
    """A gateway with its own admission; its account's tier is in nobody's way but for `tier`."""
    tiers = folder / "tiers.yaml"
    tiers.write_text(yaml.safe_dump({"tiers": {"narrow": _TIER | tier}}))
    runs = ToldBackend()
    async with (
        open_trainer_server(
            settings(base, folder / "trainer"), registry=CollectorRegistry(), backend=runs
        ) as server,
        running_gateway(
            folder,
            "127.0.0.1:1",
            wait=False,
            tier="narrow" if tier else UNLIMITED_TIER,
            counted=False,
            tiers_file=tiers,
            trainer=f"127.0.0.1:{server.port}",
            training_settle_interval_s=0.1,
        ) as gateway,
    ):
        await until(lambda: _serves(gateway))
        yield Door(gateway=gateway, trainer=server, runs=runs, folder=folder)


def _serves(gateway: Harness) -> bool:
    training = gateway.gateway.training
    return training is not None and training.serving
