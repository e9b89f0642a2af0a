"""The audit log: who changed what on accounts, keys and credits, append-only, in SQL.

An entry is written in the transaction of the change, so that there is none without the other. It
names keys by their public id and holds no secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.gateway.tables import audit_entries


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """Who makes a change, and with which call."""

    account: str
    key_id: str
    """Empty for a command that works on the database itself."""
    request_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """One change."""

    id: int
    """Grows from one entry to the next, with gaps."""
    at: datetime
    actor: Actor
    action: str
    """`account.create`, `account.set_tier`, `account.suspend`, `account.resume`, `key.create`,
    `key.rotate`, `key.revoke` or `credits.grant`."""
    account: str
    """The account that was changed."""
    subject: str
    """Id of the key that was changed; empty when it was the account itself."""
    details: Mapping[str, Any]


async def record(
    connection: AsyncConnection,
    actor: Actor,
    action: str,
    *,
    account: str,
    subject: str = "",
    details: Mapping[str, Any] | None = None,
) -> None:
    """Appends an entry in the transaction of `connection`."""
    values = {
        "at": datetime.now(UTC),
        "actor_account": actor.account,
        "actor_key_id": actor.key_id,
        "request_id": actor.request_id,
        "action": action,
        "account": account,
        "subject": subject,
        "details": json.dumps(details or {}, ensure_ascii=False),
    }
    await connection.execute(insert(audit_entries).values(values))


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditLog:
    """The audit log behind `engine`, to read."""

    engine: AsyncEngine

    async def list_entries(
        self, *, limit: int, account: str | None = None, before_id: int | None = None
    ) -> Sequence[AuditEntry]:
        """Of all accounts or one, the newest first; those older than the entry `before_id`."""
        query = select(audit_entries).order_by(audit_entries.c.id.desc()).limit(limit)
        if account is not None:
            query = query.where(audit_entries.c.account == account)
        if before_id is not None:
            query = query.where(audit_entries.c.id < before_id)
        async with self.engine.connect() as connection:
            return [_entry(row) for row in await connection.execute(query)]


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        at=row.at,
        actor=Actor(account=row.actor_account, key_id=row.actor_key_id, request_id=row.request_id),
        action=row.action,
        account=row.account,
        subject=row.subject,
        details=json.loads(row.details),
    )
