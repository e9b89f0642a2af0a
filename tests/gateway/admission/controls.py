"""Admission without a gateway around it, on a ledger that can be switched off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry
from sqlalchemy.exc import OperationalError

from services.gateway.admission import AdmissionControl, AdmissionRequest
from services.gateway.admission.store import AdmissionStore
from services.gateway.ledger import Usage
from services.gateway.metrics import GatewayMetrics
from services.gateway.period import Period
from services.gateway.tiers import BUILT_IN_TIERS, Tier

PRICE = 10
WIDE = replace(
    BUILT_IN_TIERS["pro"],
    name="wide",
    burst=1000,
    concurrent_requests=100,
    monthly_requests=None,
    monthly_millicredits=1_000_000,
)
FREE_OF_BALANCES = replace(WIDE, name="no balances", monthly_millicredits=None)


@dataclass(kw_only=True)
class MemoryLedger:
    """A ledger of record in memory; `is_down` makes it fail, `is_frozen` makes it hang, `is_full`
    lets it be read alone.
    """

    entries: dict[tuple[str, str, str], int] = field(default_factory=dict)
    granted: dict[str, int] = field(default_factory=dict)
    is_down: bool = False
    is_frozen: bool = False
    is_full: bool = False
    probe_count: int = 0

    async def charge(
        self,
        *,
        account: str,
        request_id: str,
        item: str,
        millicredits: int,
        service: str,
        model: str,
        at: datetime,
    ) -> bool:
        await self._append()
        key = (account, request_id, item)
        if key in self.entries:
            return False
        self.entries[key] = millicredits
        return True

    async def usage(
        self, account: str, period: Period, *, excluding: Collection[str] = ()
    ) -> Usage:
        await self._answer()
        entries = {
            key: amount
            for key, amount in self.entries.items()
            if key[0] == account and key[1] not in excluding
        }
        return Usage(
            account=account,
            period=period,
            request_count=len({request_id for _, request_id, _ in entries}),
            charged_millicredits=sum(entries.values()),
            granted_millicredits=self.granted.get(account, 0),
        )

    async def probe(self) -> None:
        self.probe_count += 1
        await self._append()

    async def _append(self) -> None:
        await self._answer()
        if self.is_full:
            raise OperationalError("INSERT", {}, OSError("the disk is full"))

    async def _answer(self) -> None:
        if self.is_frozen:
            await asyncio.Event().wait()
        if self.is_down:
            raise OperationalError("SELECT", {}, OSError("the database is away"))
        await asyncio.sleep(0)


@dataclass(kw_only=True)
class Running:
    """A control at work."""

    control: AdmissionControl
    store: AdmissionStore
    ledger: MemoryLedger
    registry: CollectorRegistry

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def running(
    store: AdmissionStore, ledger: MemoryLedger, **options: Any
) -> AsyncIterator[Running]:
    """A control that keeps its leases alive for the length of the block; it closes `store`."""
    registry = CollectorRegistry()
    control = AdmissionControl(store, ledger, metrics=GatewayMetrics(registry), **options)
    task = asyncio.create_task(control.run())
    try:
        yield Running(control=control, store=store, ledger=ledger, registry=registry)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await control.close()


def request(request_id: str = "r1", *, tier: Tier = WIDE, pictures: int = 1) -> AdmissionRequest:
    return AdmissionRequest(
        request_id=request_id,
        charge_id=f"{request_id}:0",
        account="acme",
        tier=tier,
        service="generation",
        model="dots",
        artifact_millicredits=PRICE,
        artifact_count=pictures,
    )
