"""What attempts of training jobs reserve, in SQL: credits that are spent for hours without a call.

A hold is opened before the trainer hears of an attempt, paid in full when the trainer has taken it,
and closed when the attempt has ended: what was paid for steps that were not done goes back, in the
month in which it was paid. Every method is one transaction and may be repeated; whoever dies
between two of them leaves an open hold, which `training_credits` brings to its end.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.gateway.ledger import Entry, append
from services.gateway.period import Period
from services.gateway.tables import ledger_entries, training_holds
from services.storage.database import begin_write

SERVICE = "training"
"""Label in ledger and metrics."""
_CHARGE_PREFIX = "training:"
_PAID = "artifact-0"  # what `Lease.charge(0)` writes
_UNUSED = "unused-steps"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """What one attempt of a job reserves."""

    id: str
    """20 hexadecimal digits, the reservation that the trainer knows the attempt by."""
    account: str
    job_id: str
    model: str
    """The base model."""
    step_millicredits: int
    first_step: int
    """Steps that earlier attempts have paid for."""
    step_count: int
    """Steps of the job in all."""
    opened_at: datetime

    @property
    def charge_id(self) -> str:
        """What the ledger has it under."""
        return f"{_CHARGE_PREFIX}{self.id}"

    @property
    def millicredits(self) -> int:
        """The price of all steps that are left."""
        return self._price(self.step_count)

    def cost(self, step: int) -> int:
        """The price of what was done when the job is at `step`."""
        return self._price(min(max(step, self.first_step), self.step_count))

    def _price(self, step: int) -> int:
        return (step - self.first_step) * self.step_millicredits


def new_hold(
    *,
    account: str,
    model: str,
    step_millicredits: int,
    step_count: int,
    job_id: str = "",
    first_step: int = 0,
) -> Hold:
    """A hold that nobody knows of yet; without a job, of the one that the trainer will make."""
    hold_id = secrets.token_hex(10)
    return Hold(
        id=hold_id,
        account=account,
        job_id=job_id or f"job_{hold_id}",
        model=model,
        step_millicredits=step_millicredits,
        first_step=min(first_step, step_count),
        step_count=step_count,
        opened_at=datetime.now(UTC),
    )


class TrainingHolds:
    """The holds in the database behind `engine`. Raises SQLAlchemyError, OSError in an outage."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def open(self, hold: Hold) -> None:
        """Note that an attempt is about to be asked for."""
        values = {name: getattr(hold, name) for name in _COLUMNS}
        async with begin_write(self._engine) as connection:
            await connection.execute(insert(training_holds).values(values))

    async def drop(self, hold: Hold) -> None:
        """Forget an open hold whose attempt was refused, and for which nothing was paid."""
        named = (training_holds.c.id == hold.id) & training_holds.c.closed_at.is_(None)
        async with begin_write(self._engine) as connection:
            await connection.execute(delete(training_holds).where(named))

    async def pay(self, hold: Hold) -> bool:
        """Charge a hold in full; False when that was done before."""
        async with begin_write(self._engine) as connection:
            return await _pay(connection, hold)

    async def close(self, hold_id: str, step: int) -> Hold | None:
        """End a hold whose job ended at `step`; None when it has ended before, or never was.

        The steps that were done are paid, those that were not are not.
        """
        async with begin_write(self._engine) as connection:
            hold = await _end(connection, hold_id)
            if hold is not None:
                await _pay(connection, hold)
                await _give_back(connection, hold, hold.cost(step))
            return hold

    async def abandon(self, hold_id: str) -> None:
        """End a hold of an attempt that the trainer never took; what was paid goes back."""
        async with begin_write(self._engine) as connection:
            hold = await _end(connection, hold_id)
            if hold is not None:
                await _give_back(connection, hold, 0)

    async def paid_step(self, account: str, job_id: str) -> int:
        """The furthest step of a job that its ended attempts have paid for; 0 without one."""
        holds, entries = training_holds.c, ledger_entries.c
        paid = (
            select(
                *(holds.first_step, holds.step_millicredits),
                func.sum(entries.millicredits).label("millicredits"),
            )
            .join(ledger_entries, entries.request_id == _CHARGE_PREFIX + holds.id)
            .where(holds.account == account, entries.account == account)
            .where(holds.job_id == job_id, holds.closed_at.is_not(None))
            .where(holds.step_millicredits > 0)
            .group_by(holds.id, holds.first_step, holds.step_millicredits)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(paid)).all()
        steps = (row.first_step + int(row.millicredits) // row.step_millicredits for row in rows)
        return max(steps, default=0)

    async def list_open(self) -> Sequence[Hold]:
        """The holds that have not ended, the oldest first."""
        chosen = select(training_holds).where(training_holds.c.closed_at.is_(None))
        async with self._engine.connect() as connection:
            rows = (await connection.execute(chosen.order_by(training_holds.c.opened_at))).all()
        return [_hold(row) for row in rows]


async def _end(connection: AsyncConnection, hold_id: str) -> Hold | None:
    """Mark a hold as ended; None when it was, or never was a hold."""
    columns = training_holds.c
    is_open = (columns.id == hold_id) & columns.closed_at.is_(None)
    ending = update(training_holds).where(is_open).values(closed_at=datetime.now(UTC))
    row = (await connection.execute(ending.returning(training_holds))).one_or_none()
    return None if row is None else _hold(row)


async def _pay(connection: AsyncConnection, hold: Hold) -> bool:
    period = str(Period.containing(datetime.now(UTC)))
    return await _append(connection, hold, _PAID, hold.millicredits, period)


async def _give_back(connection: AsyncConnection, hold: Hold, cost: int) -> None:
    """Take back what was paid beyond `cost`, in the month in which it was paid."""
    entries = ledger_entries.c
    paid = select(func.sum(entries.millicredits), func.min(entries.period)).where(
        entries.account == hold.account, entries.request_id == hold.charge_id
    )
    amount, period = (await connection.execute(paid)).one()
    # A sum is a Decimal in PostgreSQL, and nothing at all where nothing was paid.
    unused = int(amount or 0) - cost
    if unused > 0:
        await _append(connection, hold, _UNUSED, -unused, period)


async def _append(
    connection: AsyncConnection, hold: Hold, item: str, millicredits: int, period: str
) -> bool:
    entry = Entry(
        account=hold.account,
        request_id=hold.charge_id,
        item=item,
        period=period,
        millicredits=millicredits,
        service=SERVICE,
        model=hold.model,
        at=datetime.now(UTC),
    )
    return await connection.run_sync(append, entry)


_COLUMNS = (
    *("id", "account", "job_id", "model"),
    *("step_millicredits", "first_step", "step_count", "opened_at"),
)


def _hold(row: Row[Any]) -> Hold:
    return Hold(**{name: getattr(row, name) for name in _COLUMNS})
