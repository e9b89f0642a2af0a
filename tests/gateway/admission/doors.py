"""Gateways with their own admission, in front of a fake backend, for an account in a given tier."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import yaml
from pydantic import SecretStr

from services.gateway.ledger import Ledger, Usage
from services.gateway.period import Period
from services.storage.database import open_engine
from tests.gateway.fake_backend import FakeBackend
from tests.gateway.harness import Harness, running_gateway

# 1000 × 1000 pixels in one step cost 32 millicredits.
PICTURE = {"width": 1000, "height": 1000, "step_count": 1}
PICTURE_MILLICREDITS = 32

_WIDE: dict[str, Any] = {
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
    "priority": 7,
    "queue_share": 0.5,
}


def door(
    tmp_path: Path,
    fake: FakeBackend,
    *,
    redis_url: str = "",
    redis_timeout_s: float = 30,
    replicas: int = 1,
    **tier: Any,
) -> AbstractAsyncContextManager[Harness]:
    """A gateway whose account is in a tier that is in nobody's way, but for `tier`.

    It is patient with Redis, as a busy machine is no outage.
    """
    path = tmp_path / "tiers.yaml"
    path.write_text(yaml.safe_dump({"tiers": {"narrow": _WIDE | tier}}))
    settings: dict[str, Any] = {"tiers_file": path, "replica_count": replicas}
    if redis_url:
        settings["redis_url"] = SecretStr(redis_url)
        settings["redis_timeout_s"] = redis_timeout_s
    return running_gateway(tmp_path, fake, tier="narrow", counted=False, **settings)


async def finished(call: Any) -> list[Any]:
    return [event async for event in call]


async def outcome(call: Any) -> str:
    """`OK`, or the status code that the call ends with."""
    try:
        await finished(call)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def metadata_of(call: Any) -> dict[str, str]:
    """Initial and trailing metadata of a finished call."""
    pairs = [*await call.initial_metadata(), *await call.trailing_metadata()]
    return {key: value for key, value in pairs if isinstance(value, str)}


async def ledger_usage(tmp_path: Path, account: str = "acme") -> Usage:
    """What the ledger has of this month."""
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/gateway.db")
    try:
        return await Ledger(engine=engine).usage(account, Period.containing(datetime.now(UTC)))
    finally:
        await engine.dispose()
