"""Charges in groups are the same charges."""

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

from services.gateway.account_store import AccountStore
from services.gateway.group_commit import GroupedLedger
from services.gateway.ledger import Ledger
from services.gateway.period import Period
from tests.gateway.actors import ACTOR

NOVEMBER = Period(year=2026, month=11)
NOW = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def database_url(tmp_path):
    return f"sqlite+aiosqlite:///{tmp_path}/gateway.db"


@pytest.fixture
async def ledger(engine):
    for name in ("acme", "other"):
        await AccountStore(engine=engine).create_account(name, tier="free", actor=ACTOR)
    return GroupedLedger(Ledger(engine=engine))


async def charge(ledger, request_id="r1", item="artifact-0", *, account="acme", cost=10):
    return await ledger.charge(
        account=account,
        request_id=request_id,
        item=item,
        millicredits=cost,
        service="generation",
        model="m",
        at=NOW,
    )


async def sums(ledger, account="acme"):
    usage = await ledger.usage(account, NOVEMBER)
    return usage.request_count, usage.charged_millicredits


@pytest.fixture
def commits():
    """Of all connections, since the test began."""
    commits = []

    def note(connection):
        commits.append(1)

    event.listen(Engine, "commit", note)
    yield commits
    event.remove(Engine, "commit", note)


async def test_charges_that_come_together_share_commits_and_each_counts_once(ledger, commits):
    before = len(commits)
    charges = [
        charge(ledger, f"r{number}", f"artifact-{item}", account=account)
        for account in ("acme", "other")
        for number in range(15)
        for item in range(2)
        for _ in range(2)  # each twice
    ]
    told = await asyncio.gather(*charges)
    assert told.count(True) == told.count(False) == 60
    assert await sums(ledger) == await sums(ledger, "other") == (15, 300)
    assert 0 < len(commits) - before < 20
    assert await charge(ledger, "alone")
    assert await sums(ledger) == (16, 310)


async def test_what_is_wrong_with_one_is_told_of_that_one_alone(ledger):
    """An account that is not there is refused by the database."""
    names = ["acme", "nobody", "acme", "other"]
    told = await asyncio.gather(
        *(charge(ledger, f"r{number}", account=name) for number, name in enumerate(names)),
        return_exceptions=True,
    )
    assert isinstance(told[1], DBAPIError)
    assert [told[0], told[2], told[3]] == [True, True, True]
    assert (await sums(ledger), await sums(ledger, "other")) == ((2, 20), (1, 10))
    with pytest.raises(ValueError, match="negative"):
        await charge(ledger, cost=-1)


async def test_a_caller_that_leaves_disturbs_nobody(ledger):
    tasks = [asyncio.create_task(charge(ledger, f"r{number}")) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert told[1::2] == [True] * 10
    count, charged = await sums(ledger)
    assert 10 <= count <= 20
    assert charged == 10 * count
