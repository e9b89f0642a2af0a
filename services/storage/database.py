"""SQL databases through SQLAlchemy's asyncio engine: SQLite by default, PostgreSQL by URL.

Called by services that keep records (the gateway's accounts, keys and ledger). It opens engines and
transactions; it knows no table. `services.storage.migration` makes the tables.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, DateTime, Dialect, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.types import TypeDecorator

from services.storage.sqlite_file import SqliteFile

_BUSY_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 5.0
_SQLITE_CACHE_KIB = 256
"""Of each connection. With SQLite's own 2 MiB a process grows with the file, to hold pages that
the system's cache holds, too.
"""
_POSTGRESQL_TIMEOUTS_S = {"timeout": 10, "command_timeout": 60}

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_sqlite_turns: WeakKeyDictionary[AsyncEngine, asyncio.Lock] = WeakKeyDictionary()
_sqlite_files: WeakKeyDictionary[AsyncEngine, SqliteFile] = WeakKeyDictionary()
_sqlite_writers: WeakKeyDictionary[AsyncEngine, _SqliteWriter] = WeakKeyDictionary()


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, always with the UTC zone, also on SQLite, which stores none.

    Raises ValueError on a datetime without a zone.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Converts to UTC on the way in."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone is not a point in time")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Puts the zone back on the way out."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def sqlite_path(url: str) -> Path | None:
    """The file behind a SQLite URL; None for other databases and for one in memory."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def open_engine(url: str) -> AsyncEngine:
    """An engine for `url`, for example `sqlite+aiosqlite:///folder/file.db`; connects on first use.

    The folder of a SQLite file is created. Its connections use write-ahead logging and wait 5 s for
    a lock instead of failing; they keep what was committed through a power cut, and enforce foreign
    keys; where the file is removed or replaced, they raise OSError. PostgreSQL has 10 s to
    let a connection in and a minute for a statement, so that nothing waits for ever for a frozen
    server. Close with `close_engine`.
    Raises ValueError when the URL cannot be parsed or its driver is not asynchronous or missing.
    """
    parsed = _parse(url)
    path = sqlite_path(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    is_postgresql = parsed.get_backend_name() == "postgresql"
    try:
        engine = create_async_engine(
            parsed,
            pool_pre_ping=is_postgresql,
            connect_args=_POSTGRESQL_TIMEOUTS_S if is_postgresql else {},
        )
    except ImportError as error:
        raise ValueError(f"the driver of {parsed.drivername} is not installed") from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
    if path is not None:
        _sqlite_files[engine] = SqliteFile(path)
        _sqlite_files[engine].guard(engine.sync_engine)
    return engine


async def close_engine(engine: AsyncEngine) -> None:
    """Closes the connections; leaves those of a server that does not answer to its end."""
    writer = _sqlite_writers.pop(engine, None)
    if writer is not None:
        writer.close()
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await engine.dispose()
    except (TimeoutError, SQLAlchemyError, OSError) as error:
        extra = {"why": explain(error)}
        _log.warning("connections to the database were not closed well", extra=extra)


@asynccontextmanager
async def begin_write(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that is going to write: committed at the end of the block, else rolled back.

    SQLite has one writer at a time. Those of this process queue here instead of polling its lock,
    which is taken at once: taken later, after a read, it can fail because another has written.
    """
    if engine.dialect.name != "sqlite":
        async with engine.begin() as connection:
            yield connection
        return
    async with _sqlite_turn(engine), engine.begin() as connection:
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


async def write_at_once(engine: AsyncEngine, write: Callable[[Connection], _T]) -> _T:
    """The result of `write` in a transaction of its own, see `begin_write`.

    An asynchronous connection to SQLite changes threads several times a statement, which takes ten
    times as long as the statements; here `write` as a whole runs on one thread. A caller that is
    cancelled does not know whether it was done.
    """
    writer = _sqlite_writers.get(engine)
    if writer is None:
        file = _sqlite_files.get(engine)
        if file is None:
            async with begin_write(engine) as connection:
                return await connection.run_sync(write)
        writer = _sqlite_writers[engine] = _SqliteWriter(file)
    async with _sqlite_turn(engine):
        return await writer.run(write)


class _SqliteWriter:
    """A connection to a SQLite file and the thread that it is used on."""

    def __init__(self, file: SqliteFile) -> None:
        self._engine = create_engine(URL.create("sqlite", database=str(file.path)))
        event.listen(self._engine, "connect", _configure_sqlite)
        file.guard(self._engine)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")

    async def run(self, write: Callable[[Connection], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, write)

    def _run(self, write: Callable[[Connection], _T]) -> _T:
        with self._engine.begin() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return write(connection)

    def close(self) -> None:
        self._thread.submit(self._engine.dispose)
        self._thread.shutdown(wait=False)


def _sqlite_turn(engine: AsyncEngine) -> asyncio.Lock:
    return _sqlite_turns.setdefault(engine, asyncio.Lock())


def is_outage(error: Exception) -> bool:
    """Whether an error says that the database is away or overtaxed, not that a query is wrong."""
    if isinstance(error, DBAPIError):
        # Some drivers leave the kind to the code: 22 bad data, 23 integrity, 42 a wrong statement.
        code = str(getattr(error.orig, "sqlstate", None) or "")
        is_defect = isinstance(error, IntegrityError | ProgrammingError | DataError)
        return not (is_defect or code[:2] in ("22", "23", "42"))
    return isinstance(error, OSError | PoolTimeoutError)


def explain(error: Exception) -> str:
    """What kind of error it is and what the database said, in a line, without the statement."""
    said = error.orig if isinstance(error, DBAPIError) else error
    lines = str(said).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def insert_into(
    connection: AsyncConnection | Connection, table: Table
) -> postgresql.Insert | sqlite.Insert:
    """An INSERT with `on_conflict_do_nothing` and `on_conflict_do_update`, for the database."""
    return insert_in(connection.dialect.name, table)


def insert_in(dialect_name: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """As `insert_into`, for a dialect by its name."""
    return postgresql.insert(table) if dialect_name == "postgresql" else sqlite.insert(table)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        is_async = parsed.get_dialect().is_async
    except ArgumentError as error:  # its message may quote the URL, which may hold a password
        raise ValueError("not a database URL that SQLAlchemy understands") from error
    if not is_async:
        raise ValueError(
            f"{parsed.drivername} is not asynchronous; use sqlite+aiosqlite or postgresql+asyncpg"
        )
    return parsed


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(_BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA cache_size = -{_SQLITE_CACHE_KIB}")
    cursor.close()
