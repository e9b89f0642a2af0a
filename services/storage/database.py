"""SQL databases through SQLAlchemy's asyncio engine: SQLite by default, PostgreSQL by URL.

Called by services that keep records (the gateway's accounts and keys). It opens engines and creates
missing tables; it knows no table of its own and writes no query.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, DateTime, Dialect, MetaData, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.types import TypeDecorator

_BUSY_TIMEOUT_S = 5.0


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

    The folder of a SQLite file is created. Its connections use write-ahead logging, wait 5 s for a
    lock instead of failing, and enforce foreign keys. Close with `await engine.dispose()`.
    Raises ValueError when the URL cannot be parsed or its driver is not asynchronous or missing.
    """
    parsed = _parse(url)
    path = sqlite_path(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = create_async_engine(parsed, pool_pre_ping=path is None)
    except ImportError as error:
        raise ValueError(f"the driver of {parsed.drivername} is not installed") from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
    return engine


async def create_schema(engine: AsyncEngine, metadata: MetaData) -> None:
    """Creates the tables of `metadata` that are missing; existing ones are left as they are."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        is_async = parsed.get_dialect().is_async
    except ArgumentError as error:  # its message may quote the URL, which may hold a password
        raise ValueError("not a database URL that SQLAlchemy understands") from error
    if not is_async:
        raise ValueError(f"{parsed.drivername} is not asynchronous; use sqlite+aiosqlite")
    return parsed


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(_BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()
