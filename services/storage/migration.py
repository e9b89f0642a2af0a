"""Brings a database to the newest version of its schema, with alembic and under a lock.

Called by whoever opens a database, before anything else is done with it: one process migrates,
those that start at the same moment wait for it. All migrations run in one transaction, so that a
failed one changes nothing. It knows no table; the scripts are those of the caller.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from weakref import WeakKeyDictionary

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.storage.database import begin_write

_LOCK_ID = 0x6C696D6E6572  # "limner", of PostgreSQL's advisory locks

# Alembic keeps the running migration in module globals: one at a time in a process.
_migrating: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def upgrade_schema(
    engine: AsyncEngine, scripts: Path, *, unversioned: str, table: str
) -> None:
    """Runs the migrations below `scripts` that the database has not had.

    A database that has `table` but no version is taken to be at the version `unversioned`.
    Raises ValueError when the database comes from a newer release, SQLAlchemyError.
    """
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    head = ScriptDirectory.from_config(config).get_current_head()
    async with engine.connect() as connection:
        is_newest = await connection.run_sync(_version) == head
    if is_newest:
        return
    lock = _migrating.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with lock, begin_write(engine) as connection:
        await _lock_database(connection)
        await connection.run_sync(_upgrade, config, unversioned, table)


async def _lock_database(connection: AsyncConnection) -> None:
    """SQLite is locked by the transaction itself."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _LOCK_ID})


def _upgrade(connection: Connection, config: Config, unversioned: str, table: str) -> None:
    config.attributes["connection"] = connection
    try:
        if _version(connection) is None and inspect(connection).has_table(table):
            command.stamp(config, unversioned)
        command.upgrade(config, "head")
    except CommandError as error:
        raise ValueError(f"the database comes from a newer release: {error}") from error


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
