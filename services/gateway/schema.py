"""The schema of the gateway's database, brought up to date before the database is used."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from services.storage.migration import upgrade_schema

_SCRIPTS = Path(__file__).parent / "migrations"
_BEFORE_VERSIONS = "0001"


async def migrate(engine: AsyncEngine) -> None:
    """Makes the tables that are missing and changes those of earlier releases; keeps all data.

    Several processes may call it at the same moment. Raises ValueError when the database comes from
    a newer release, SQLAlchemyError when it cannot be used.
    """
    await upgrade_schema(engine, _SCRIPTS, unversioned=_BEFORE_VERSIONS, table="accounts")
