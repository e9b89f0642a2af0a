"""How often a job was queued by its owner."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Count attempts; what was there before counts as one."""
    op.add_column(
        "training_jobs", sa.Column("attempt", sa.Integer, nullable=False, server_default="1")
    )
