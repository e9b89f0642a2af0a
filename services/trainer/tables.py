"""The trainer's tables. `services.trainer.migrations` makes them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from services.storage.database import UtcDateTime

MAX_KEY_LENGTH = 255
MAX_MODEL_LENGTH = 200

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
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("created", UtcDateTime, nullable=False),
    Column("updated", UtcDateTime, nullable=False),
    Column("reservation", String(24), nullable=False, server_default=""),
    Column("warnings", JSON, nullable=False, server_default="[]"),
    Column("model", String(MAX_MODEL_LENGTH)),
    PrimaryKeyConstraint("id", name="pk_training_jobs"),
    UniqueConstraint("account", "idempotency_key", name="uq_training_jobs_account_key"),
    Index("uq_training_jobs_account_model", "account", "model", unique=True),
    Index("ix_training_jobs_account_created", "account", "created", "id"),
    Index("ix_training_jobs_state_created", "state", "created", "id"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String(32), nullable=False),
    Column("job_id", String(24), nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("attempt_count", Integer, nullable=False),
    Column("next_at", UtcDateTime, nullable=False),
    Column("account", String(100), nullable=False, server_default=""),
    Column("number", Integer, nullable=False, server_default="0"),
    PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
    Index("ix_webhook_deliveries_next_at", "next_at"),
    Index("ix_webhook_deliveries_job_number", "job_id", "number"),
)
"""What was not delivered yet; a row is written in the transaction that changes the job's state, and
of a job's rows the one with the lowest `number` comes first."""
