"""A database of the gateway for each test, on SQLite and on PostgreSQL."""

import pytest

from services.gateway.schema import migrate
from services.storage.database import open_engine


@pytest.fixture
async def engine(database_url: str):
    """A database with the newest schema."""
    opened = open_engine(database_url)
    await migrate(opened)
    yield opened
    await opened.dispose()
