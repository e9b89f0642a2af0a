"""Tiers, scopes and rotation; the ledger, grants, the audit log and the change counter.

Accounts that exist keep what they had, no limits: they get the tier `unlimited`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.storage.database import UtcDateTime

revision = "0002"
down_revision = "0001"

_APPEND_ONLY = ("ledger_entries", "credit_grants", "audit_entries")

_Serial = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Extend accounts and keys, and add the tables."""
    _extend_accounts_and_keys()
    _create_ledger()
    _create_audit_log()
    _create_change_counter()
    refuse = _refuse_in_postgresql if op.get_bind().dialect.name == "postgresql" else _refuse
    for table in _APPEND_ONLY:
        refuse(table)


def _extend_accounts_and_keys() -> None:
    op.add_column(
        "accounts", sa.Column("tier", sa.String(100), nullable=False, server_default="free")
    )
    op.add_column("accounts", sa.Column("suspended_at", UtcDateTime))
    op.execute("UPDATE accounts SET tier = 'unlimited'")
    scopes = sa.Column(
        "scopes", sa.String(100), nullable=False, server_default="generate,train,upscale"
    )
    op.add_column("keys", scopes)
    op.add_column("keys", sa.Column("last_used_at", UtcDateTime))
    op.add_column("keys", sa.Column("replaced_by", sa.String(12)))


def _create_ledger() -> None:
    op.create_table(
        "ledger_entries",
        sa.Column("id", _Serial, nullable=False),
        _account("ledger_entries"),
        sa.Column("request_id", sa.String(200), nullable=False),
        sa.Column("item", sa.String(64), nullable=False),
        sa.Column("period", sa.String(7), nullable=False),
        sa.Column("millicredits", sa.BigInteger, nullable=False),
        sa.Column("service", sa.String(100), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_entries"),
        sa.UniqueConstraint(
            "account", "request_id", "item", name="uq_ledger_entries_account_request_id_item"
        ),
    )
    op.create_index("ix_ledger_entries_account_period", "ledger_entries", ["account", "period"])
    op.create_table(
        "credit_grants",
        sa.Column("id", _Serial, nullable=False),
        _account("credit_grants"),
        sa.Column("request_id", sa.String(200), nullable=False),
        sa.Column("period", sa.String(7), nullable=False),
        sa.Column("millicredits", sa.BigInteger, nullable=False),
        sa.Column("granted_by", sa.String(100), nullable=False),
        sa.Column("note", sa.String(500), nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_credit_grants"),
        sa.UniqueConstraint("account", "request_id", name="uq_credit_grants_account_request_id"),
    )
    op.create_table(
        "monthly_usage",
        sa.Column("period", sa.String(7), nullable=False),
        _account("monthly_usage"),
        sa.Column("request_count", sa.BigInteger, nullable=False),
        sa.Column("charged_millicredits", sa.BigInteger, nullable=False),
        sa.Column("granted_millicredits", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("period", "account", name="pk_monthly_usage"),
    )


def _create_audit_log() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("id", _Serial, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("actor_account", sa.String(100), nullable=False),
        sa.Column("actor_key_id", sa.String(12), nullable=False),
        sa.Column("request_id", sa.String(200), nullable=False),
        sa.Column("action", sa.String(50), nullable=False),
        sa.Column("account", sa.String(100), nullable=False),
        sa.Column("subject", sa.String(100), nullable=False),
        sa.Column("details", sa.String(2000), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_account", "audit_entries", ["account"])


def _create_change_counter() -> None:
    changes = op.create_table(
        "changes",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_changes"),
    )
    op.bulk_insert(changes, [{"name": "keys", "count": 0}])


def _account(table: str) -> sa.Column[str]:
    target = sa.ForeignKey("accounts.name", name=f"fk_{table}_account")
    return sa.Column("account", sa.String(100), target, nullable=False)


def _refuse(table: str) -> None:
    """Make SQLite refuse to change what was appended."""
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}"
            f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def _refuse_in_postgresql(table: str) -> None:
    op.execute(
        f"CREATE FUNCTION refuse_change_of_{table}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN RAISE EXCEPTION '{table} is append-only'; END$$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_{table}()"
    )
