"""Delivers webhooks: takes from the outbox what is due, posts it, tries again later what failed.

One task for the process, at least once for every change of state and in their order for each job: a
receiver tells repetitions by the delivery's id. A delivery waits for nobody else's receiver: it has
a thread of its own, of which no account takes more than a few. It is given up after about a day.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from services.storage.database import explain
from services.trainer.metrics import TrainerMetrics
from services.trainer.webhook_client import DeliveryError, WebhookClient
from services.trainer.webhook_outbox import Delivery, WebhookOutbox

_LOGGER = logging.getLogger(__name__)

AT_A_TIME = 32
AT_A_TIME_OF_AN_ACCOUNT = 4
_POLL_S = 1.0
_LONGEST_OUTAGE_PAUSE_S = 60.0
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
        self._under_way: dict[str, Delivery] = {}  # by job: of each the first that waits
        self._one_ended = asyncio.Event()

    async def run(self) -> None:
        """Deliver until cancelled; a database that is away is asked again."""
        # Not the loop's own threads, which read and write files for everybody else.
        threads = ThreadPoolExecutor(AT_A_TIME, "webhook")
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._one_ended.clear()
                    await self._start_due(group, threads)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_S):
                            await self._one_ended.wait()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _start_due(self, group: asyncio.TaskGroup, threads: Executor) -> None:
        while len(self._under_way) < AT_A_TIME:
            counts = Counter(delivery.account for delivery in self._under_way.values())
            try:
                delivery = await self._outbox.next_due(
                    but_of_jobs=list(self._under_way),
                    but_of_accounts=[
                        account
                        for account, count in counts.items()
                        if count >= AT_A_TIME_OF_AN_ACCOUNT
                    ],
                )
            except (SQLAlchemyError, OSError) as error:
                _LOGGER.warning("webhooks cannot be read now", extra={"why": explain(error)})
                return
            if delivery is None:
                return
            self._under_way[delivery.job_id] = delivery
            group.create_task(self._see_through(delivery, threads))

    async def _see_through(self, delivery: Delivery, threads: Executor) -> None:
        try:
            await self._deliver(delivery, threads)
        finally:
            del self._under_way[delivery.job_id]
            self._one_ended.set()

    async def _deliver(self, delivery: Delivery, threads: Executor) -> None:
        post = partial(
            self._client.post,
            delivery.url,
            delivery.body.encode(),
            secret=delivery.secret,
            delivery_id=delivery.id,
        )
        try:
            await asyncio.get_running_loop().run_in_executor(threads, post)
        except DeliveryError as error:
            await self._failed(delivery, str(error))
            return
        self._metrics.webhook("delivered")
        await _written(lambda: self._outbox.drop(delivery))

    async def _failed(self, delivery: Delivery, why: str) -> None:
        attempt = delivery.attempt_count + 1
        extra = {"job": delivery.job_id, "attempt": attempt, "why": why}
        if attempt >= MAX_ATTEMPTS:
            _LOGGER.error("a webhook was given up", extra=extra)
            self._metrics.webhook("given up")
            await _written(lambda: self._outbox.drop(delivery))
            return
        _LOGGER.warning("a webhook did not arrive", extra=extra)
        self._metrics.webhook("failed")
        delay_s = min(self._first_delay_s * 2.0**delivery.attempt_count, _LONGEST_DELAY_S)
        delay_s *= random.uniform(0.75, 1.25)
        await _written(lambda: self._outbox.postpone(delivery, delay_s))


async def _written(write: Callable[[], Awaitable[None]]) -> None:
    """Write what came of a delivery; it is not posted again because that cannot be done now."""
    pause_s = _POLL_S
    while True:
        try:
            return await write()
        except (SQLAlchemyError, OSError) as error:
            _LOGGER.warning("webhooks cannot be stored now", extra={"why": explain(error)})
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_OUTAGE_PAUSE_S)
