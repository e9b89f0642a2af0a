"""Reservations, warnings and names of models; webhooks that wait for delivery."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.storage.database import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Extend the jobs, and add the table of deliveries."""
    for column in (
        sa.Column("reservation", sa.String(24), nullable=False, server_default=""),
        sa.Column("warnings", sa.JSON, nullable=False, server_default="[]"),
        sa.Column("model", sa.String(200)),
    ):
        op.add_column("training_jobs", column)
    op.create_index(
        "uq_training_jobs_account_model", "training_jobs", ["account", "model"], unique=True
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("job_id", sa.String(24), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("attempt_count", sa.Integer, nullable=False),
        sa.Column("next_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
    )
    op.create_index("ix_webhook_deliveries_next_at", "webhook_deliveries", ["next_at"])
