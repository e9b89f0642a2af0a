"""Accounts and the audit log in SQL, on SQLite and on PostgreSQL."""

import asyncio

import pytest

from services.gateway.account_store import AccountStore
from services.gateway.audit import AuditLog
from services.gateway.changes import read_counter
from services.runtime.errors import AlreadyExistsError, NotFoundError
from tests.gateway.actors import ACTOR


@pytest.fixture
def store(engine):
    return AccountStore(engine=engine)


async def actions(engine, **options):
    entries = await AuditLog(engine=engine).list_entries(limit=50, **options)
    return [entry.action for entry in entries]


async def test_an_account_is_created_once(store, engine):
    outcomes = await asyncio.gather(
        *(store.create_account("acme", tier="pro", actor=ACTOR) for _ in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, AlreadyExistsError) for outcome in outcomes) == 4
    found = await store.find_account("acme")
    assert (found.name, found.tier, found.suspended_at) == ("acme", "pro", None)
    assert await actions(engine) == ["account.create"]


async def test_a_change_of_tier_says_from_what_to_what_and_is_counted(store, engine):
    await store.create_account("acme", tier="free", actor=ACTOR)
    before = await read_counter(engine)
    assert (await store.set_tier("acme", tier="pro", actor=ACTOR)).tier == "pro"
    assert await read_counter(engine) == before + 1
    entry = (await AuditLog(engine=engine).list_entries(limit=1))[0]
    assert (entry.action, entry.account, entry.actor) == ("account.set_tier", "acme", ACTOR)
    assert entry.details == {"from": "free", "to": "pro"}


async def test_suspending_and_resuming_twice_is_doing_it_once(store, engine):
    await store.create_account("acme", tier="free", actor=ACTOR)
    before = await read_counter(engine)
    first = await store.suspend("acme", actor=ACTOR)
    assert first.suspended_at is not None
    assert await store.suspend("acme", actor=ACTOR) == first
    assert (await store.resume("acme", actor=ACTOR)).suspended_at is None
    assert (await store.resume("acme", actor=ACTOR)).suspended_at is None
    assert await read_counter(engine) == before + 2
    assert await actions(engine) == ["account.resume", "account.suspend", "account.create"]


async def test_an_unknown_account_is_not_found_and_nothing_is_written(store, engine):
    for change in (
        store.find_account("nobody"),
        store.set_tier("nobody", tier="pro", actor=ACTOR),
        store.suspend("nobody", actor=ACTOR),
        store.resume("nobody", actor=ACTOR),
    ):
        with pytest.raises(NotFoundError, match="no account 'nobody'"):
            await change
    assert await actions(engine) == []


async def test_accounts_come_in_pages_by_name(store):
    names = [f"a{number}" for number in range(5)]
    for name in reversed(names):
        await store.create_account(name, tier="free", actor=ACTOR)
    first = await store.list_accounts(limit=3)
    rest = await store.list_accounts(limit=3, after=first[-1].name)
    assert [account.name for account in (*first, *rest)] == names


async def test_audit_entries_come_in_pages_the_newest_first(store, engine):
    for name in ("a", "b", "c"):
        await store.create_account(name, tier="free", actor=ACTOR)
    log = AuditLog(engine=engine)
    first = await log.list_entries(limit=2)
    rest = await log.list_entries(limit=2, before_id=first[-1].id)
    assert [entry.account for entry in (*first, *rest)] == ["c", "b", "a"]
    assert [entry.account for entry in await log.list_entries(limit=9, account="b")] == ["b"]
