"""Training at the door, put together: the link to the trainer, credits, and the service.

Called by `gateway` where the settings name a trainer; without one there is no training service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from services.gateway.admission import Admission
from services.gateway.backend import LinkOptions
from services.gateway.metrics import GatewayMetrics
from services.gateway.pricing import Prices
from services.gateway.tiers import TierCatalog
from services.gateway.trainer_link import TRAINING_SERVICE, TrainerLink
from services.gateway.training_credits import TrainingCredits
from services.gateway.training_holds import TrainingHolds
from services.gateway.training_servicer import TrainingServicer
from services.runtime.server import Service
from services.runtime.settings import Address


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The training service of a gateway; `run` keeps it going until cancelled."""

    link: TrainerLink
    credits: TrainingCredits
    service: Service

    @property
    def serving(self) -> bool:
        """Whether the trainer serves."""
        return self.link.serving

    async def run(self) -> None:
        """Follows the trainer and settles jobs until cancelled, then closes the link."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.link.watch())
                group.create_task(self.credits.run())
        finally:
            await self.link.close()


def open_training(
    trainer: Address | None,
    engine: AsyncEngine,
    *,
    options: LinkOptions,
    admission: Admission,
    tiers: TierCatalog,
    prices: Prices,
    metrics: GatewayMetrics,
    settle_interval_s: float,
    on_change: Callable[[], None],
) -> Training | None:
    """Training through the trainer at an address; None without one. Raises TlsFileError."""
    if trainer is None:
        return None
    link = TrainerLink(trainer, options, on_change=on_change)
    credits = TrainingCredits(
        TrainingHolds(engine),
        link,
        admission=admission,
        metrics=metrics,
        interval_s=settle_interval_s,
    )
    servicer = TrainingServicer(link, credits, admission=admission, tiers=tiers, prices=prices)
    service = Service(name=TRAINING_SERVICE, register=servicer.register)
    return Training(link=link, credits=credits, service=service)
