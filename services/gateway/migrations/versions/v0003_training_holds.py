"""What attempts of training jobs reserve."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.storage.database import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the table."""
    target = sa.ForeignKey("accounts.name", name="fk_training_holds_account")
    op.create_table(
        "training_holds",
        sa.Column("id", sa.String(20), nullable=False),
        sa.Column("account", sa.String(100), target, nullable=False),
        sa.Column("job_id", sa.String(24), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("step_millicredits", sa.BigInteger, nullable=False),
        sa.Column("first_step", sa.Integer, nullable=False),
        sa.Column("step_count", sa.Integer, nullable=False),
        sa.Column("opened_at", UtcDateTime, nullable=False),
        sa.Column("closed_at", UtcDateTime),
        sa.PrimaryKeyConstraint("id", name="pk_training_holds"),
    )
    op.create_index("ix_training_holds_closed_at", "training_holds", ["closed_at"])
