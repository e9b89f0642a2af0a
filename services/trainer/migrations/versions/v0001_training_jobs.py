"""The table of jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.storage.database import UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "training_jobs",
        sa.Column("id", sa.String(24), nullable=False),
        sa.Column("account", sa.String(100), nullable=False),
        sa.Column("idempotency_key", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("tree", sa.JSON, nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("failure_reason", sa.String(32)),
        sa.Column("failure_message", sa.Text),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("created", UtcDateTime, nullable=False),
        sa.Column("updated", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_training_jobs"),
        sa.UniqueConstraint("account", "idempotency_key", name="uq_training_jobs_account_key"),
    )
    op.create_index(
        "ix_training_jobs_account_created", "training_jobs", ["account", "created", "id"]
    )
    op.create_index("ix_training_jobs_state_created", "training_jobs", ["state", "created", "id"])
