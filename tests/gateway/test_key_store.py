"""Keys in SQL, on SQLite and on PostgreSQL."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import LargeBinary, cast, func, select

from services.gateway.audit import AuditLog
from services.gateway.changes import read_counter
from services.gateway.key_format import digest_key
from services.gateway.key_store import KeyStore
from services.gateway.scopes import DEFAULT_SCOPES
from services.gateway.tables import accounts, keys
from services.runtime.errors import NotFoundError, StateError
from tests.gateway.actors import ACTOR

PEPPER = b"pepper-for-tests-0123456789abcdefghij"
HOUR = timedelta(hours=1)


@pytest.fixture
def store(engine):
    return KeyStore(engine=engine)


async def make(store, *, account="acme", name="ci", **options):
    return await store.create_key(
        account=account,
        name=name,
        pepper=PEPPER,
        actor=ACTOR,
        new_account_tier="free",
        **options,
    )


async def test_a_key_is_found_by_its_digest_alone(store):
    key, record = await make(store)
    found = await store.find_key(digest_key(key.text, PEPPER))
    assert found == record
    assert (found.account, found.tier, found.name) == ("acme", "free", "ci")
    assert found.state(datetime.now(UTC)) == "active"
    assert found.scopes == DEFAULT_SCOPES
    assert await store.find_key(digest_key(key.text, b"another pepper" * 3)) is None


async def test_a_revoked_key_stays_revoked_and_says_when(store):
    key, record = await make(store)
    revoked = await store.revoke_key(record.key_id, actor=ACTOR)
    assert revoked.state(datetime.now(UTC)) == "revoked"
    assert await store.find_key(digest_key(key.text, PEPPER)) == revoked
    with pytest.raises(StateError, match="revoked already, at 20") as raised:
        await store.revoke_key(record.key_id, actor=ACTOR)
    assert raised.value.reason == "KEY_REVOKED"


async def test_of_many_who_revoke_at_once_one_succeeds(store, engine):
    _, record = await make(store)
    outcomes = await asyncio.gather(
        *(store.revoke_key(record.key_id, actor=ACTOR) for _ in range(8)), return_exceptions=True
    )
    assert sum(not isinstance(outcome, StateError) for outcome in outcomes) == 1
    actions = [entry.action for entry in await AuditLog(engine=engine).list_entries(limit=50)]
    assert actions.count("key.revoke") == 1


async def test_an_unknown_key_can_be_neither_revoked_nor_rotated(store):
    with pytest.raises(NotFoundError, match="no key with the id 'nothing'"):
        await store.revoke_key("nothing", actor=ACTOR)
    with pytest.raises(NotFoundError, match="no key with the id 'nothing'"):
        await store.rotate_key("nothing", overlap=HOUR, pepper=PEPPER, actor=ACTOR)


async def test_an_account_is_made_with_its_first_key_and_keeps_several(store, engine):
    await asyncio.gather(*(make(store, name=f"k{i}") for i in range(8)))
    await make(store, account="other")
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(accounts)) == 2
    assert len(await store.list_keys()) == 9
    assert {record.name for record in await store.list_keys(account="acme")} == {
        f"k{i}" for i in range(8)
    }
    assert await store.list_keys(account="nobody") == []


async def test_without_a_tier_an_account_is_not_made(store):
    with pytest.raises(NotFoundError, match="no account 'acme'"):
        await store.create_key(account="acme", name="n", pepper=PEPPER, actor=ACTOR)
    assert await store.list_keys() == []


async def test_a_key_expires_when_its_lifetime_is_over(store):
    lifetime = timedelta(days=30)
    _, record = await make(store, lifetime=lifetime)
    listed = (await store.list_keys())[0]
    assert listed.expires_at == record.created + lifetime
    assert listed.state(record.created + lifetime - timedelta(seconds=1)) == "active"
    assert listed.state(record.created + lifetime) == "expired"


async def test_a_rotated_key_and_its_successor_are_both_good_until_the_overlap_is_over(store):
    scopes = frozenset({"generate", "admin"})
    key, old = await make(store, scopes=scopes)
    successor, new, replaced = await store.rotate_key(
        old.key_id, overlap=HOUR, pepper=PEPPER, actor=ACTOR
    )
    assert await store.find_key(digest_key(key.text, PEPPER)) == replaced
    assert await store.find_key(digest_key(successor.text, PEPPER)) == new
    assert (new.account, new.name, new.scopes) == ("acme", "ci", scopes)
    assert new.expires_at is None
    assert replaced.replaced_by == new.key_id
    end = new.created + HOUR
    assert replaced.expires_at == end
    assert replaced.state(end - timedelta(seconds=1)) == "active"
    assert replaced.state(end) == "expired"


async def test_a_rotation_keeps_the_lifetime_and_never_prolongs_the_old_key(store):
    lifetime = timedelta(minutes=30)
    _, old = await make(store, lifetime=lifetime)
    _, new, replaced = await store.rotate_key(old.key_id, overlap=HOUR, pepper=PEPPER, actor=ACTOR)
    assert new.expires_at == new.created + lifetime
    assert replaced.expires_at == old.expires_at


async def test_only_an_active_key_that_was_not_replaced_is_rotated(store):
    async def refusal(record):
        with pytest.raises(StateError) as raised:
            await store.rotate_key(record.key_id, overlap=HOUR, pepper=PEPPER, actor=ACTOR)
        return raised.value.reason

    _, replaced = await make(store)
    await store.rotate_key(replaced.key_id, overlap=HOUR, pepper=PEPPER, actor=ACTOR)
    _, expired = await make(store, lifetime=timedelta(0))
    _, revoked = await make(store)
    await store.revoke_key(revoked.key_id, actor=ACTOR)
    key_count = len(await store.list_keys())
    assert await refusal(replaced) == "KEY_REPLACED"
    assert await refusal(expired) == "KEY_EXPIRED"
    assert await refusal(revoked) == "KEY_REVOKED"
    assert len(await store.list_keys()) == key_count


async def test_of_many_who_rotate_at_once_one_succeeds(store):
    _, record = await make(store)
    outcomes = await asyncio.gather(
        *(
            store.rotate_key(record.key_id, overlap=HOUR, pepper=PEPPER, actor=ACTOR)
            for _ in range(8)
        ),
        return_exceptions=True,
    )
    assert sum(not isinstance(outcome, StateError) for outcome in outcomes) == 1
    assert len(await store.list_keys()) == 2


async def test_what_shuts_a_key_out_is_counted_and_what_does_not_is_not(store, engine):
    _, first = await make(store)
    _, second = await make(store)
    before = await read_counter(engine)
    await store.note_uses({first.key_id: datetime.now(UTC)})
    assert await read_counter(engine) == before
    await store.revoke_key(first.key_id, actor=ACTOR)
    assert await read_counter(engine) == before + 1
    await store.rotate_key(second.key_id, overlap=HOUR, pepper=PEPPER, actor=ACTOR)
    assert await read_counter(engine) == before + 2


async def test_the_latest_use_is_kept_whoever_writes_first(store):
    _, first = await make(store)
    _, second = await make(store)
    late = datetime(2026, 3, 1, 12, tzinfo=UTC)
    await store.note_uses({first.key_id: late, "long-gone": late})
    await store.note_uses({first.key_id: late - HOUR, second.key_id: late - HOUR})
    used = {record.key_id: record.last_used_at for record in await store.list_keys()}
    assert used == {first.key_id: late, second.key_id: late - HOUR}


async def test_pages_hold_every_key_once_also_when_many_are_made_at_once(store):
    made = await asyncio.gather(*(make(store, name=f"k{i}") for i in range(11)))
    seen, after = [], None
    while page := await store.list_keys(limit=4, after=after):
        seen += [record.key_id for record in page]
        after = (page[-1].created, page[-1].key_id)
    assert sorted(seen) == sorted(record.key_id for _, record in made)


async def test_every_change_is_in_the_audit_log_without_a_secret(store, engine):
    key, record = await make(store, scopes=frozenset({"train"}), lifetime=HOUR)
    successor, new, _ = await store.rotate_key(
        record.key_id, overlap=HOUR, pepper=PEPPER, actor=ACTOR
    )
    await store.revoke_key(record.key_id, actor=ACTOR)
    entries = await AuditLog(engine=engine).list_entries(limit=50)
    assert [(entry.action, entry.subject) for entry in entries] == [
        ("key.revoke", record.key_id),
        ("key.rotate", new.key_id),
        ("key.create", record.key_id),
        ("account.create", ""),
    ]
    assert {entry.actor for entry in entries} == {ACTOR}
    assert entries[2].details["scopes"] == "train"
    assert entries[1].details["replaces"] == record.key_id
    said = str(entries)
    for text in (key.text, successor.text):
        assert text not in said
        assert text.split("_")[3] not in said


async def test_the_text_of_a_key_is_nowhere_in_the_database(store, engine):
    key, record = await make(store)
    async with engine.connect() as connection:
        rows = (await connection.execute(select(keys))).all()
        digest = await connection.scalar(select(cast(keys.c.digest, LargeBinary)))
    assert len(digest) == 32
    content = repr(rows)
    assert record.key_id in content
    assert key.text.split("_")[3] not in content
    assert PEPPER.decode() not in content
