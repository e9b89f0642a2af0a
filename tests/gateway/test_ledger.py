"""The ledger of record, on SQLite and on PostgreSQL."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, event, func, select, update
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import Pool

from services.gateway.account_store import AccountStore
from services.gateway.audit import Actor, AuditLog
from services.gateway.ledger import Ledger, Usage
from services.gateway.period import Period
from services.gateway.schema import migrate
from services.gateway.tables import (
    APPEND_ONLY,
    audit_entries,
    credit_grants,
    ledger_entries,
    metadata,
)
from services.runtime.errors import AlreadyExistsError, NotFoundError
from services.storage.database import close_engine, is_outage, open_engine
from tests.gateway.actors import ACTOR

NOVEMBER = Period(year=2026, month=11)
DECEMBER = Period(year=2026, month=12)
NOW = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
async def ledger(engine):
    for name in ("acme", "other"):
        await AccountStore(engine=engine).create_account(name, tier="free", actor=ACTOR)
    return Ledger(engine=engine)


async def charge(ledger, request_id="r1", item="artifact-0", *, at=NOW, account="acme", cost=10):
    return await ledger.charge(
        account=account,
        request_id=request_id,
        item=item,
        millicredits=cost,
        service="generation",
        model="m",
        at=at,
    )


async def grant(ledger, millicredits, request_id="g1", **options):
    actor = Actor(account="boss", key_id="k", request_id=request_id)
    return await ledger.grant(
        account="acme", millicredits=millicredits, note="sorry", actor=actor, at=NOW, **options
    )


async def test_a_charge_is_in_the_usage_of_its_month(ledger):
    assert await charge(ledger)
    assert await ledger.usage("acme", NOVEMBER) == Usage(
        account="acme", period=NOVEMBER, request_count=1, charged_millicredits=10
    )
    assert await ledger.usage("acme", DECEMBER) == Usage(account="acme", period=DECEMBER)
    assert await ledger.usage("nobody", NOVEMBER) == Usage(account="nobody", period=NOVEMBER)


async def test_the_same_item_twice_is_one_entry_whatever_the_second_says(ledger):
    assert await charge(ledger, cost=10)
    assert not await charge(ledger, cost=99, at=NOW + timedelta(days=30))
    assert (await ledger.usage("acme", NOVEMBER)).charged_millicredits == 10
    assert await ledger.usage("acme", DECEMBER) == Usage(account="acme", period=DECEMBER)


async def test_a_request_id_of_one_account_is_no_discount_for_another(ledger):
    assert await charge(ledger, account="acme")
    assert await charge(ledger, account="other")
    assert (await ledger.usage("other", NOVEMBER)).charged_millicredits == 10


async def test_many_at_once_with_duplicates_are_charged_exactly_once_each(ledger, engine):
    wanted = [(f"r{i % 6}", f"artifact-{i // 6 % 4}") for i in range(72)]
    outcomes = await asyncio.gather(*(charge(ledger, *each) for each in wanted))
    assert sum(outcomes) == 24
    usage = await ledger.usage("acme", NOVEMBER)
    assert (usage.request_count, usage.charged_millicredits) == (6, 240)
    async with engine.connect() as connection:
        query = select(func.count(), func.sum(ledger_entries.c.millicredits))
        assert tuple((await connection.execute(query)).one()) == (24, 240)


async def test_a_month_ends_at_midnight_utc_wherever_the_clock_is(ledger):
    last_moment = datetime(2026, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC)
    tokyo = datetime.fromisoformat("2026-12-01T08:59:59+09:00")
    await charge(ledger, "a", at=last_moment)
    await charge(ledger, "b", at=tokyo)
    await charge(ledger, "c", at=last_moment + timedelta(microseconds=1))
    assert (await ledger.usage("acme", NOVEMBER)).request_count == 2
    assert (await ledger.usage("acme", DECEMBER)).request_count == 1


async def test_a_request_that_spans_two_months_counts_once_and_is_charged_in_both(ledger):
    await charge(ledger, item="artifact-0", at=NOVEMBER.end - timedelta(seconds=1))
    await charge(ledger, item="artifact-1", at=NOVEMBER.end)
    november, december = [await ledger.usage("acme", each) for each in (NOVEMBER, DECEMBER)]
    assert (november.request_count, december.request_count) == (1, 0)
    assert (november.charged_millicredits, december.charged_millicredits) == (10, 10)
    excluded = [await ledger.usage("acme", p, excluding=["r1"]) for p in (NOVEMBER, DECEMBER)]
    assert [(u.request_count, u.charged_millicredits) for u in excluded] == [(0, 0), (0, 0)]


async def test_requests_can_be_left_out_of_a_usage(ledger):
    for request_id in ("r1", "r2", "r3"):
        for index in range(2):
            await charge(ledger, request_id, f"artifact-{index}")
    await grant(ledger, 7)
    usage = await ledger.usage("acme", NOVEMBER, excluding=["r2", "unheard-of"])
    assert (usage.request_count, usage.charged_millicredits) == (2, 40)
    assert usage.granted_millicredits == 7
    assert type(usage.charged_millicredits) is int


async def test_a_free_artifact_counts_as_a_request(ledger):
    await charge(ledger, cost=0)
    usage = await ledger.usage("acme", NOVEMBER)
    assert (usage.request_count, usage.charged_millicredits) == (1, 0)


async def test_a_negative_charge_and_an_unknown_account_are_refused(ledger):
    with pytest.raises(ValueError, match="not negative"):
        await charge(ledger, cost=-1)
    with pytest.raises(DBAPIError):
        await charge(ledger, account="nobody")
    assert [usage async for usage in ledger.balances(NOVEMBER)] == []


async def test_a_grant_adds_up_and_repeating_it_changes_nothing(ledger, engine):
    await grant(ledger, 500)
    assert (await grant(ledger, 500)).granted_millicredits == 500
    assert (await grant(ledger, 250, "g2")).granted_millicredits == 750
    assert (await ledger.usage("acme", NOVEMBER)).granted_millicredits == 750
    entries = await AuditLog(engine=engine).list_entries(limit=10, account="acme")
    assert [entry.action for entry in entries] == ["credits.grant"] * 2 + ["account.create"]
    assert entries[0].details == {"millicredits": 250, "period": "2026-11", "note": "sorry"}


async def test_a_request_id_that_granted_another_amount_is_refused(ledger):
    await grant(ledger, 500)
    with pytest.raises(AlreadyExistsError, match="granted 500 millicredits before, not 501"):
        await grant(ledger, 501)
    assert (await ledger.usage("acme", NOVEMBER)).granted_millicredits == 500


async def test_a_grant_to_nobody_and_of_nothing_is_refused(ledger):
    with pytest.raises(NotFoundError):
        await ledger.grant(account="nobody", millicredits=1, note="", actor=ACTOR)
    with pytest.raises(ValueError, match="positive"):
        await grant(ledger, 0)


async def test_balances_tell_every_account_of_the_month_by_name(ledger):
    await charge(ledger, account="other")
    await grant(ledger, 5)
    await charge(ledger, "later", at=NOVEMBER.end)
    balances = [usage async for usage in ledger.balances(NOVEMBER)]
    assert [(each.account, each.charged_millicredits) for each in balances] == [
        ("acme", 0),
        ("other", 10),
    ]
    assert balances[0].granted_millicredits == 5


async def test_balances_go_through_all_pages(ledger, engine, monkeypatch):
    monkeypatch.setattr("services.gateway.ledger._PAGE_ROWS", 3)
    accounts = [f"a{number}" for number in range(7)]
    for name in accounts:
        await AccountStore(engine=engine).create_account(name, tier="free", actor=ACTOR)
        await charge(ledger, account=name)
    assert [usage.account async for usage in ledger.balances(NOVEMBER)] == accounts


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("verb", [update, delete])
async def test_what_was_appended_can_be_neither_changed_nor_deleted(ledger, engine, table, verb):
    await charge(ledger)
    await grant(ledger, 5)
    statement = verb(metadata.tables[table])
    if verb is update:
        statement = statement.values(account="other")

    async def tamper():
        async with engine.begin() as connection:
            await connection.execute(statement)

    with pytest.raises(DBAPIError, match="append-only"):
        await tamper()
    async with engine.connect() as connection:
        for each in (ledger_entries, credit_grants, audit_entries):
            query = select(func.count()).where(each.c.account == "acme")
            assert await connection.scalar(query) >= 1


@pytest.fixture
def limit():
    """The pages that every connection to SQLite may fill."""
    limit = {"pages": 10**6}

    def hold_pages(connection, record, proxy):
        connection.execute(f"PRAGMA max_page_count = {limit['pages']}")

    event.listen(Pool, "checkout", hold_pages)
    yield limit
    event.remove(Pool, "checkout", hold_pages)


@pytest.mark.parametrize("statement", ["SELECT 1 / 0", "SELECT 'x'::int", "SELECT nothing"])
async def test_a_statement_that_is_wrong_is_no_outage(postgresql, statement):
    opened = open_engine(postgresql.create_database())
    with pytest.raises(SQLAlchemyError) as caught:
        async with opened.connect() as connection:
            await connection.exec_driver_sql(statement)
    assert not is_outage(caught.value)
    await close_engine(opened)


async def test_a_full_disk_takes_no_charge_and_loses_none(tmp_path, limit):
    """SQLite's own limit of pages stands for the disk's."""
    opened = open_engine(f"sqlite+aiosqlite:///{tmp_path}/gateway.db")
    await migrate(opened)
    await AccountStore(engine=opened).create_account("acme", tier="free", actor=ACTOR)
    full = Ledger(engine=opened)
    limit["pages"] = 1  # no page beyond those that there are
    taken, refused = [], []
    for number in range(60):
        try:
            await charge(full, request_id="r" * 150 + str(number))
        except OperationalError as error:
            refused.append(error)
        else:
            taken.append(number)
    assert taken
    assert [is_outage(error) for error in refused] == [True] * (60 - len(taken)) != []
    found = await full.usage("acme", NOVEMBER)
    assert (found.request_count, found.charged_millicredits) == (len(taken), 10 * len(taken))
    limit["pages"] = 10**6
    await full.probe()
    for number in range(60):
        fresh = await charge(full, request_id="r" * 150 + str(number))
        assert fresh == (number not in taken)
    assert (await full.usage("acme", NOVEMBER)).request_count == 60
    await close_engine(opened)
