"""Delivers webhooks: takes from the outbox what is due, posts it, tries again later what failed.

One task for the process, at least once for every change of state: a receiver tells repetitions by
the delivery's id. It gives up after about a day.
"""

from __future__ import annotations

import asyncio
import logging
import random

from sqlalchemy.exc import SQLAlchemyError

from services.storage.database import explain
from services.trainer.metrics import TrainerMetrics
from services.trainer.webhook_client import DeliveryError, WebhookClient
from services.trainer.webhook_outbox import Delivery, WebhookOutbox

_LOGGER = logging.getLogger(__name__)

_AT_A_TIME = 8
_POLL_S = 1.0
_FIRST_DELAY_S = 2.0
_LONGEST_DELAY_S = 3 * 3600.0
MAX_ATTEMPTS = 18
"""Doubling from 2 s up to 3 h: the last one comes about a day after the first."""


class WebhookDeliverer:
    """Empties `outbox` through `client`."""

    def __init__(
        self,
        outbox: WebhookOutbox,
        client: WebhookClient,
        metrics: TrainerMetrics,
        *,
        first_delay_s: float = _FIRST_DELAY_S,
    ) -> None:
        self._outbox, self._client, self._metrics = outbox, client, metrics
        self._first_delay_s = first_delay_s

    async def run(self) -> None:
        """Deliver until cancelled; a database that is away is asked again."""
        while True:
            try:
                due = await self._outbox.due(_AT_A_TIME)
                async with asyncio.TaskGroup() as group:
                    for delivery in due:
                        group.create_task(self._deliver(delivery))
            except* (SQLAlchemyError, OSError) as errors:
                why = explain(errors.exceptions[0])
                _LOGGER.warning("webhooks cannot be read now", extra={"why": why})
                due = []
            if not due:
                await asyncio.sleep(_POLL_S)

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await asyncio.to_thread(
                self._client.post,
                delivery.url,
                delivery.body.encode(),
                secret=delivery.secret,
                delivery_id=delivery.id,
            )
        except DeliveryError as error:
            await self._failed(delivery, str(error))
            return
        self._metrics.webhook("delivered")
        await self._outbox.drop(delivery)

    async def _failed(self, delivery: Delivery, why: str) -> None:
        attempt = delivery.attempt_count + 1
        extra = {"job": delivery.job_id, "attempt": attempt, "why": why}
        if attempt >= MAX_ATTEMPTS:
            _LOGGER.error("a webhook was given up", extra=extra)
            self._metrics.webhook("given up")
            await self._outbox.drop(delivery)
            return
        _LOGGER.warning("a webhook did not arrive", extra=extra)
        self._metrics.webhook("failed")
        delay_s = min(self._first_delay_s * 2.0**delivery.attempt_count, _LONGEST_DELAY_S)
        await self._outbox.postpone(delivery, delay_s * random.uniform(0.75, 1.25))
