import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import LargeBinary, cast, func, select

from services.gateway.key_format import digest_key
from services.gateway.key_store import KeyStore, KeyStoreError
from services.gateway.tables import accounts, keys, metadata
from services.storage.database import create_schema, open_engine

PEPPER = b"pepper-for-tests-0123456789abcdefghij"


@pytest.fixture
async def store(tmp_path):
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/keys.db")
    await create_schema(engine, metadata)
    yield KeyStore(engine=engine)
    await engine.dispose()


async def test_a_key_is_found_by_its_digest_alone(store):
    key, record = await store.create_key(account="acme", name="ci", pepper=PEPPER)
    found = await store.find_key(digest_key(key.text, PEPPER))
    assert found == record
    assert (found.account, found.name, found.state(datetime.now(UTC))) == ("acme", "ci", "active")
    assert await store.find_key(digest_key(key.text, b"another pepper" * 3)) is None


async def test_the_text_of_a_key_is_nowhere_in_the_database(store, tmp_path):
    key, record = await store.create_key(account="acme", name="ci", pepper=PEPPER)
    async with store.engine.connect() as connection:
        await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    secret = key.text.split("_")[3]
    assert record.key_id.encode() in content
    assert secret.encode() not in content
    assert PEPPER not in content


async def test_a_revoked_key_stays_revoked_and_says_when(store):
    key, record = await store.create_key(account="acme", name="ci", pepper=PEPPER)
    revoked = await store.revoke_key(record.key_id)
    assert revoked.state(datetime.now(UTC)) == "revoked"
    assert await store.find_key(digest_key(key.text, PEPPER)) == revoked
    with pytest.raises(KeyStoreError, match="revoked already, at 20"):
        await store.revoke_key(record.key_id)


async def test_of_many_who_revoke_at_once_one_succeeds(store):
    _, record = await store.create_key(account="acme", name="ci", pepper=PEPPER)
    outcomes = await asyncio.gather(
        *(store.revoke_key(record.key_id) for _ in range(20)), return_exceptions=True
    )
    assert sum(not isinstance(outcome, KeyStoreError) for outcome in outcomes) == 1


async def test_an_unknown_key_cannot_be_revoked(store):
    with pytest.raises(KeyStoreError, match="no key with the id 'nothing'"):
        await store.revoke_key("nothing")


async def test_an_account_is_made_with_its_first_key_and_keeps_several(store):
    await asyncio.gather(
        *(store.create_key(account="acme", name=f"k{i}", pepper=PEPPER) for i in range(8))
    )
    await store.create_key(account="other", name="k", pepper=PEPPER)
    async with store.engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(accounts)) == 2
    assert len(await store.list_keys()) == 9
    assert {record.name for record in await store.list_keys(account="acme")} == {
        f"k{i}" for i in range(8)
    }
    assert await store.list_keys(account="nobody") == []


async def test_a_key_expires_when_its_lifetime_is_over(store):
    lifetime = timedelta(days=30)
    _, record = await store.create_key(account="a", name="k", pepper=PEPPER, lifetime=lifetime)
    listed = (await store.list_keys())[0]
    assert listed.expires_at == record.created + lifetime
    assert listed.state(record.created + lifetime - timedelta(seconds=1)) == "active"
    assert listed.state(record.created + lifetime) == "expired"


@pytest.mark.parametrize("account", ["", "Acme", "a b", "-a", "a-", "a" * 101, "ä", "a\n"])
async def test_an_improper_account_is_refused(store, account):
    with pytest.raises(KeyStoreError, match="account's name"):
        await store.create_key(account=account, name="k", pepper=PEPPER)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a" * 101])
async def test_an_improper_key_name_is_refused(store, name):
    with pytest.raises(KeyStoreError, match="key's name"):
        await store.create_key(account="acme", name=name, pepper=PEPPER)


async def test_digests_are_stored_as_32_bytes(store):
    await store.create_key(account="acme", name="k", pepper=PEPPER)
    async with store.engine.connect() as connection:
        digest = await connection.scalar(select(cast(keys.c.digest, LargeBinary)))
    assert len(digest) == 32
