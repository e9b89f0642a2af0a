"""Accounts in SQL: create, list, change the tier, suspend, resume.

Called by the admin service and by whoever makes a first key. Every change writes an audit entry;
those that may shut keys out are counted for the replicas. It does not know which tiers exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.gateway.audit import Actor, record
from services.gateway.changes import count_change
from services.gateway.tables import accounts
from services.runtime.errors import AlreadyExistsError, NotFoundError
from services.storage.database import begin_write, insert_into


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountRecord:
    """What is stored of an account."""

    name: str
    tier: str
    created: datetime
    suspended_at: datetime | None
    """When its keys were shut out; None: they are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountStore:
    """The accounts behind `engine`. Every method is one transaction."""

    engine: AsyncEngine

    async def create_account(self, name: str, *, tier: str, actor: Actor) -> AccountRecord:
        """Creates an account. Raises AlreadyExistsError."""
        async with begin_write(self.engine) as connection:
            created = await ensure_account(connection, name, tier=tier, actor=actor)
            if created is None:
                raise AlreadyExistsError(
                    f"there is an account {name!r} already", reason="ACCOUNT_EXISTS"
                )
        return created

    async def list_accounts(self, *, limit: int, after: str = "") -> Sequence[AccountRecord]:
        """Accounts by name, those after the name `after`."""
        query = select(accounts).where(accounts.c.name > after).order_by(accounts.c.name)
        async with self.engine.connect() as connection:
            return [_account(row) for row in await connection.execute(query.limit(limit))]

    async def find_account(self, name: str) -> AccountRecord:
        """The account with this name. Raises NotFoundError."""
        async with self.engine.connect() as connection:
            return await require_account(connection, name)

    async def set_tier(self, name: str, *, tier: str, actor: Actor) -> AccountRecord:
        """Changes the tier; it counts for new requests. Raises NotFoundError."""
        async with begin_write(self.engine) as connection:
            before = await require_account(connection, name, held=True)
            details = {"from": before.tier, "to": tier}
            changed = await _change(connection, name, {"tier": tier})
            await record(connection, actor, "account.set_tier", account=name, details=details)
        return changed

    async def suspend(self, name: str, *, actor: Actor) -> AccountRecord:
        """Shuts all keys of an account out; changes nothing when they are. Raises NotFoundError."""
        async with begin_write(self.engine) as connection:
            before = await require_account(connection, name, held=True)
            if before.suspended_at is not None:
                return before
            changed = await _change(connection, name, {"suspended_at": datetime.now(UTC)})
            await record(connection, actor, "account.suspend", account=name)
        return changed

    async def resume(self, name: str, *, actor: Actor) -> AccountRecord:
        """Lets the keys of an account in again; changes nothing when they are. NotFoundError."""
        async with begin_write(self.engine) as connection:
            before = await require_account(connection, name, held=True)
            if before.suspended_at is None:
                return before
            changed = await _change(connection, name, {"suspended_at": None})
            await record(connection, actor, "account.resume", account=name)
        return changed


async def ensure_account(
    connection: AsyncConnection, name: str, *, tier: str, actor: Actor
) -> AccountRecord | None:
    """Creates an account in the transaction of `connection`; None when it exists."""
    insert = insert_into(connection, accounts).values(
        name=name, tier=tier, created=datetime.now(UTC)
    )
    inserted = insert.on_conflict_do_nothing().returning(*accounts.c)
    row = (await connection.execute(inserted)).first()
    if row is None:
        return None
    await record(connection, actor, "account.create", account=name, details={"tier": tier})
    return _account(row)


async def require_account(
    connection: AsyncConnection, name: str, *, held: bool = False
) -> AccountRecord:
    """The account with this name; `held`: nobody changes it before the commit. NotFoundError."""
    query = select(accounts).where(accounts.c.name == name)
    row = (await connection.execute(query.with_for_update() if held else query)).first()
    if row is None:
        raise NotFoundError(f"there is no account {name!r:.120}", reason="ACCOUNT_NOT_FOUND")
    return _account(row)


async def _change(connection: AsyncConnection, name: str, values: dict[str, Any]) -> AccountRecord:
    await count_change(connection)
    change = update(accounts).where(accounts.c.name == name).values(values)
    return _account((await connection.execute(change.returning(*accounts.c))).one())


def _account(row: Row[Any]) -> AccountRecord:
    return AccountRecord(
        name=row.name, tier=row.tier, created=row.created, suspended_at=row.suspended_at
    )
