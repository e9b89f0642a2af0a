"""Migrations, on SQLite and on PostgreSQL: from nothing, from before versions, all at once."""

import asyncio
import os
import sys
from datetime import UTC, datetime

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import (
    Column,
    ForeignKey,
    LargeBinary,
    MetaData,
    String,
    Table,
    insert,
    inspect,
    text,
)
from sqlalchemy.exc import DBAPIError

from services.gateway.account_store import AccountStore
from services.gateway.key_store import KeyStore
from services.gateway.schema import migrate
from services.gateway.scopes import DEFAULT_SCOPES
from services.gateway.tables import metadata
from services.gateway.tiers import UNLIMITED_TIER
from services.storage.database import UtcDateTime, open_engine
from tests.gateway.actors import ACTOR

CREATED = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
REVOKED = datetime(2026, 2, 3, tzinfo=UTC)

# The tables of the first release, which had no migrations.
first_release = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)
first_accounts = Table(
    "accounts",
    first_release,
    Column("name", String(100), primary_key=True),
    Column("created", UtcDateTime, nullable=False),
)
first_keys = Table(
    "keys",
    first_release,
    Column("id", String(12), primary_key=True),
    Column("account", ForeignKey("accounts.name"), nullable=False, index=True),
    Column("name", String(100), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("created", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("expires_at", UtcDateTime),
)


@pytest.fixture
async def empty(database_url):
    engine = open_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def old(empty):
    """A database of the first release with two keys."""
    async with empty.begin() as connection:
        await connection.run_sync(first_release.create_all)
        await connection.execute(insert(first_accounts).values(name="acme", created=CREATED))
        for number, revoked_at in enumerate((None, REVOKED)):
            values = {
                "id": f"key{number}",
                "account": "acme",
                "name": f"n{number}",
                "digest": bytes([number]) * 32,
                "created": CREATED,
                "revoked_at": revoked_at,
            }
            await connection.execute(insert(first_keys).values(values))
    return empty


async def differences(engine):
    async with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        return await connection.run_sync(
            lambda each: compare_metadata(MigrationContext.configure(each, opts=options), metadata)
        )


async def tables(engine):
    async with engine.connect() as connection:
        return await connection.run_sync(lambda each: set(inspect(each).get_table_names()))


async def test_the_migrations_make_what_the_tables_say(empty):
    await migrate(empty)
    assert await differences(empty) == []
    assert await tables(empty) == {*metadata.tables, "alembic_version"}


async def test_a_database_of_the_first_release_keeps_its_keys_and_their_rights(old):
    await migrate(old)
    assert await differences(old) == []
    store = KeyStore(engine=old)
    good, revoked = [await store.find_key(bytes([number]) * 32) for number in range(2)]
    assert (good.key_id, good.account, good.name, good.created) == ("key0", "acme", "n0", CREATED)
    assert (good.tier, good.suspended_at, good.scopes) == (UNLIMITED_TIER, None, DEFAULT_SCOPES)
    assert good.state(datetime.now(UTC)) == "active"
    assert (revoked.state(datetime.now(UTC)), revoked.revoked_at) == ("revoked", REVOKED)
    await store.revoke_key("key0", actor=ACTOR)


async def test_migrating_again_changes_nothing(old):
    await migrate(old)
    await AccountStore(engine=old).set_tier("acme", tier="free", actor=ACTOR)
    await migrate(old)
    assert (await AccountStore(engine=old).find_account("acme")).tier == "free"


async def test_of_several_processes_that_start_at_once_one_migrates_and_all_succeed(
    old, database_url
):
    program = (
        "import asyncio, sys\n"
        "from services.gateway.schema import migrate\n"
        "from services.storage.database import open_engine\n"
        "asyncio.run(migrate(open_engine(sys.argv[1])))\n"
    )
    environment = {**os.environ, "PYTHONPATH": ".:proto/gen"}

    async def start():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, database_url, env=environment
        )
        return await process.wait()

    assert await asyncio.gather(*(start() for _ in range(3))) == [0, 0, 0]
    assert await differences(old) == []
    assert len(await KeyStore(engine=old).list_keys()) == 2


async def test_a_migration_that_fails_leaves_the_database_as_it_was(old):
    async with old.begin() as connection:
        await connection.execute(text("CREATE TABLE audit_entries (in_the_way INTEGER)"))
    before = await tables(old)
    with pytest.raises(DBAPIError):
        await migrate(old)
    assert await tables(old) == before
    async with old.connect() as connection:
        columns = await connection.run_sync(lambda each: inspect(each).get_columns("accounts"))
    assert [column["name"] for column in columns] == ["name", "created"]


async def test_a_database_of_a_newer_release_is_refused(empty):
    await migrate(empty)
    async with empty.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ValueError, match="newer release"):
        await migrate(empty)
