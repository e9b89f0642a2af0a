"""The trainer's one table. `services.trainer.migrations` makes it; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from services.storage.database import UtcDateTime

MAX_KEY_LENGTH = 255

metadata = MetaData()

jobs = Table(
    "training_jobs",
    metadata,
    Column("id", String(24), nullable=False),
    Column("account", String(100), nullable=False),
    Column("idempotency_key", String(MAX_KEY_LENGTH), nullable=False),
    Column("state", String(16), nullable=False),
    Column("request", JSON, nullable=False),
    Column("tree", JSON, nullable=False),
    Column("progress", JSON, nullable=False),
    Column("failure_reason", String(32)),
    Column("failure_message", Text),
    Column("cancel_requested", Boolean, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("updated", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("id", name="pk_training_jobs"),
    UniqueConstraint("account", "idempotency_key", name="uq_training_jobs_account_key"),
    Index("ix_training_jobs_account_created", "account", "created", "id"),
    Index("ix_training_jobs_state_created", "state", "created", "id"),
)
