"""Webhooks that are still to be delivered, in SQL: none is lost when the service dies.

`announce` adds one in the transaction that changes a job; `WebhookOutbox` is the deliverer's side.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.storage.database import begin_write
from services.trainer.job import TrainingJob
from services.trainer.tables import webhook_deliveries

EVENT_TYPE = "training_job.state_changed"
_columns = webhook_deliveries.c


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """A body that somebody is to get."""

    id: str
    job_id: str
    account: str
    url: str
    secret: str
    body: str
    attempt_count: int
    """Attempts that failed."""


async def announce(connection: AsyncConnection, job: TrainingJob) -> None:
    """Have the new state of a job delivered, if its owner wants that."""
    if not job.request.webhook_url:
        return
    delivery_id = secrets.token_hex(16)
    values = {
        "id": delivery_id,
        "job_id": job.id,
        "account": job.account,
        # Whoever changes a job holds its row: nobody else counts at the same time.
        "number": select(func.coalesce(func.max(_columns.number), 0) + 1)
        .where(_columns.job_id == job.id)
        .scalar_subquery(),
        "url": job.request.webhook_url,
        "secret": job.request.webhook_secret,
        "body": json.dumps(_body(delivery_id, job), separators=(",", ":")),
        "attempt_count": 0,
        "next_at": datetime.now(UTC),
    }
    await connection.execute(insert(webhook_deliveries).values(values))


class WebhookOutbox:
    """What waits in the database behind `engine`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def next_due(
        self, *, but_of_jobs: Collection[str] = (), but_of_accounts: Collection[str] = ()
    ) -> Delivery | None:
        """The delivery that has been due for longest, if there is one; never one of a job of which
        an earlier one waits still."""
        earlier = webhook_deliveries.alias()
        of_the_job = (earlier.c.job_id == _columns.job_id) & (earlier.c.number < _columns.number)
        chosen = (
            select(webhook_deliveries)
            .where(_columns.next_at <= datetime.now(UTC))
            .where(_columns.job_id.not_in(but_of_jobs), _columns.account.not_in(but_of_accounts))
            .where(~select(earlier.c.id).where(of_the_job).exists())
            .order_by(_columns.next_at)
            .limit(1)
        )
        async with self._engine.connect() as connection:
            row = (await connection.execute(chosen)).one_or_none()
        return None if row is None else _delivery(row)

    async def drop(self, delivery: Delivery) -> None:
        """Forget a delivery: it has arrived, or never will."""
        async with begin_write(self._engine) as connection:
            named = _columns.id == delivery.id
            await connection.execute(delete(webhook_deliveries).where(named))

    async def postpone(self, delivery: Delivery, delay_s: float) -> None:
        """Note a failed attempt; the next comes in `delay_s` seconds."""
        values = {
            "attempt_count": delivery.attempt_count + 1,
            "next_at": datetime.now(UTC) + timedelta(seconds=delay_s),
        }
        async with begin_write(self._engine) as connection:
            named = _columns.id == delivery.id
            await connection.execute(update(webhook_deliveries).where(named).values(values))


def _body(delivery_id: str, job: TrainingJob) -> dict[str, Any]:
    failure = None
    if job.failure is not None:
        failure = {"reason": job.failure.reason, "message": job.failure.message}
    return {
        "id": delivery_id,
        "type": EVENT_TYPE,
        "time": job.update_time.isoformat(),
        "job": {
            "id": job.id,
            "state": job.state,
            "step": job.progress.step,
            "step_count": job.progress.step_count,
            "attempt": job.attempt,
            "base_model": job.request.base_model,
            "model": job.model,
            "failure": failure,
        },
    }


def _delivery(row: Any) -> Delivery:
    return Delivery(
        id=row.id,
        job_id=row.job_id,
        account=row.account,
        url=row.url,
        secret=row.secret,
        body=row.body,
        attempt_count=row.attempt_count,
    )
