"""Databases for tests of the gateway: each test gets a new one, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.gateway.schema import migrate
from services.storage.database import open_engine
from tests.postgresql import PostgresServer


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """A server for the whole run. A test that needs it fails where it cannot start."""
    server = PostgresServer()
    try:
        server.create()
        server.start(fsync=False)
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/gateway.db"
    server: PostgresServer = request.getfixturevalue("postgresql")
    return server.create_database()


@pytest.fixture
async def engine(database_url: str):
    """A database with the newest schema."""
    opened = open_engine(database_url)
    await migrate(opened)
    yield opened
    await opened.dispose()
