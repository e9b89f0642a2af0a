"""The gateway's tables: accounts and their API keys.

`metadata` is the one description of the schema; `key_store` is its only reader and writer.
"""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, LargeBinary, MetaData, String, Table

from services.storage.database import UtcDateTime

MAX_NAME_LENGTH = 100

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", String(MAX_NAME_LENGTH), primary_key=True),
    Column("created", UtcDateTime, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("account", ForeignKey("accounts.name"), nullable=False, index=True),
    Column("name", String(MAX_NAME_LENGTH), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("created", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("expires_at", UtcDateTime),
)
