"""Holds of training jobs, on SQLite and on PostgreSQL: paid once, closed once, whatever repeats."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.gateway.account_store import AccountStore
from services.gateway.ledger import Ledger, Usage
from services.gateway.period import Period
from services.gateway.training_holds import Hold, TrainingHolds, new_hold
from tests.gateway.actors import ACTOR


@pytest.fixture
async def holds(engine: AsyncEngine) -> TrainingHolds:
    await AccountStore(engine=engine).create_account("acme", tier="free", actor=ACTOR)
    return TrainingHolds(engine)


def hold(**changes: Any) -> Hold:
    plain: dict[str, Any] = {"step_millicredits": 20, "step_count": 10}
    return new_hold(account="acme", model="sd15", **(plain | changes))


async def usage(engine: AsyncEngine) -> Usage:
    return await Ledger(engine=engine).usage("acme", Period.containing(datetime.now(UTC)))


async def test_a_hold_is_paid_in_full_and_closed_at_its_cost(
    engine: AsyncEngine, holds: TrainingHolds
) -> None:
    held = hold()
    await holds.open(held)
    assert (await usage(engine)).charged_millicredits == 0
    assert await holds.pay(held)
    assert not await holds.pay(held)
    assert (await usage(engine)).charged_millicredits == 200
    assert list(await holds.list_open()) == [held]
    assert await holds.close(held.id, 3) == held
    assert await holds.close(held.id, 9) is None
    assert (await usage(engine)).charged_millicredits == 60
    assert (await usage(engine)).request_count == 1
    assert not await holds.list_open()


async def test_closing_pays_what_nobody_paid(engine: AsyncEngine, holds: TrainingHolds) -> None:
    held = hold()
    await holds.open(held)
    await holds.close(held.id, 4)
    assert (await usage(engine)).charged_millicredits == 80
    assert not await holds.pay(held)


async def test_a_hold_that_came_to_nothing_costs_nothing(
    engine: AsyncEngine, holds: TrainingHolds
) -> None:
    paid, unpaid, refused = hold(), hold(), hold()
    for each in (paid, unpaid, refused):
        await holds.open(each)
    await holds.pay(paid)
    await holds.abandon(paid.id)
    await holds.abandon(unpaid.id)
    await holds.drop(refused)
    assert (await usage(engine)).charged_millicredits == 0
    assert not await holds.list_open()
    assert await holds.close(refused.id, 5) is None


async def test_steps_are_paid_once_over_all_attempts(
    engine: AsyncEngine, holds: TrainingHolds
) -> None:
    first = hold()
    await holds.open(first)
    await holds.close(first.id, 6)
    # It goes on from the checkpoint at step 4 and is stopped at 5: nothing new was done.
    second = hold(first_step=6, job_id=first.job_id)
    await holds.open(second)
    await holds.close(second.id, 5)
    assert (await usage(engine)).charged_millicredits == 120
    assert await holds.paid_step(first.account, first.job_id) == 6
    assert await holds.paid_step(first.account, "job_another") == 0
    third = hold(first_step=6, job_id=first.job_id)
    await holds.open(third)
    await holds.close(third.id, 10)
    assert (await usage(engine)).charged_millicredits == 200


async def test_however_often_and_in_whatever_order_it_is_settled_it_adds_up(
    engine: AsyncEngine, holds: TrainingHolds
) -> None:
    numbers = random.Random(0)
    held = [hold() for _ in range(6)]
    for each in held:
        await holds.open(each)
    verbs = [holds.pay(each) for each in held for _ in range(3)]
    verbs += [holds.close(each.id, 7) for each in held for _ in range(3)]  # type: ignore[misc]
    numbers.shuffle(verbs)
    await asyncio.gather(*verbs)
    assert (await usage(engine)).charged_millicredits == 6 * 140
    assert (await usage(engine)).request_count == 6
    assert not await holds.list_open()
