"""Whose webhooks wait, and which of a job comes before which."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Extend the deliveries; those that wait already keep no order."""
    for column in (
        sa.Column("account", sa.String(100), nullable=False, server_default=""),
        sa.Column("number", sa.Integer, nullable=False, server_default="0"),
    ):
        op.add_column("webhook_deliveries", column)
    op.create_index("ix_webhook_deliveries_job_number", "webhook_deliveries", ["job_id", "number"])
