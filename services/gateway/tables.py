"""The gateway's tables: accounts, API keys, the ledger, grants, training holds, the audit log.

`metadata` describes what the migrations in `services.gateway.migrations` make; a test compares the
two. Ledger entries, grants and audit entries are append-only: the database refuses to change them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from services.storage.database import UtcDateTime

MAX_NAME_LENGTH = 100
MAX_REQUEST_ID_LENGTH = 200
MAX_ITEM_LENGTH = 64
MAX_NOTE_LENGTH = 500
MAX_HOLD_ID_LENGTH = 20
MAX_JOB_ID_LENGTH = 24
_MODEL_LENGTH = 200
_PERIOD_LENGTH = 7

# SQLite numbers rows by itself in a column of the type INTEGER and no other.
_Serial = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", String(MAX_NAME_LENGTH), primary_key=True),
    Column("created", UtcDateTime, nullable=False),
    Column("tier", String(MAX_NAME_LENGTH), nullable=False, server_default="free"),
    Column("suspended_at", UtcDateTime),
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
    Column("scopes", String(100), nullable=False, server_default="generate,train,upscale"),
    Column("last_used_at", UtcDateTime),
    Column("replaced_by", String(12)),
)

ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("id", _Serial, primary_key=True),
    Column("account", ForeignKey("accounts.name"), nullable=False),
    Column("request_id", String(MAX_REQUEST_ID_LENGTH), nullable=False),
    Column("item", String(MAX_ITEM_LENGTH), nullable=False),
    Column("period", String(_PERIOD_LENGTH), nullable=False),
    Column("millicredits", BigInteger, nullable=False),
    Column("service", String(MAX_NAME_LENGTH), nullable=False),
    Column("model", String(_MODEL_LENGTH), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    UniqueConstraint("account", "request_id", "item"),
    Index(None, "account", "period"),
)

credit_grants = Table(
    "credit_grants",
    metadata,
    Column("id", _Serial, primary_key=True),
    Column("account", ForeignKey("accounts.name"), nullable=False),
    Column("request_id", String(MAX_REQUEST_ID_LENGTH), nullable=False),
    Column("period", String(_PERIOD_LENGTH), nullable=False),
    Column("millicredits", BigInteger, nullable=False),
    Column("granted_by", String(MAX_NAME_LENGTH), nullable=False),
    Column("note", String(MAX_NOTE_LENGTH), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    UniqueConstraint("account", "request_id"),
)

monthly_usage = Table(
    "monthly_usage",
    metadata,
    Column("period", String(_PERIOD_LENGTH), primary_key=True),
    Column("account", ForeignKey("accounts.name"), primary_key=True),
    Column("request_count", BigInteger, nullable=False),
    Column("charged_millicredits", BigInteger, nullable=False),
    Column("granted_millicredits", BigInteger, nullable=False),
)
"""Sums of the ledger, kept in the transactions that append to it."""

audit_entries = Table(
    "audit_entries",
    metadata,
    Column("id", _Serial, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("actor_account", String(MAX_NAME_LENGTH), nullable=False),
    Column("actor_key_id", String(12), nullable=False),
    Column("request_id", String(MAX_REQUEST_ID_LENGTH), nullable=False),
    Column("action", String(50), nullable=False),
    Column("account", String(MAX_NAME_LENGTH), nullable=False, index=True),
    Column("subject", String(MAX_NAME_LENGTH), nullable=False),
    Column("details", String(2000), nullable=False),
)

training_holds = Table(
    "training_holds",
    metadata,
    Column("id", String(MAX_HOLD_ID_LENGTH), primary_key=True),
    Column("account", ForeignKey("accounts.name"), nullable=False),
    Column("job_id", String(MAX_JOB_ID_LENGTH), nullable=False),
    Column("model", String(_MODEL_LENGTH), nullable=False),
    Column("step_millicredits", BigInteger, nullable=False),
    Column("first_step", Integer, nullable=False),
    Column("step_count", Integer, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("closed_at", UtcDateTime, index=True),
)
"""What attempts of training jobs reserve, see `services.gateway.training_holds`."""

changes = Table(
    "changes",
    metadata,
    Column("name", String(MAX_NAME_LENGTH), primary_key=True),
    Column("count", BigInteger, nullable=False),
)
"""One row, `keys`: counted up by whatever may shut a key out, so that replicas take note."""

APPEND_ONLY = ("ledger_entries", "credit_grants", "audit_entries")
