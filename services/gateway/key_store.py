"""Accounts and keys in SQL: create, list, revoke, find.

Called by the authenticator and by `limner keys`. It keeps digests only, never the text of a key,
and caches nothing.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.gateway.key_format import NewKey, digest_key, make_key
from services.gateway.tables import MAX_NAME_LENGTH, accounts, keys

_ACCOUNT_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?", re.ASCII)


class KeyStoreError(Exception):
    """A key cannot be created or revoked as asked; the message is for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRecord:
    """What is stored of a key."""

    key_id: str
    account: str
    name: str
    digest: bytes = field(repr=False)
    created: datetime
    revoked_at: datetime | None
    expires_at: datetime | None

    def state(self, now: datetime) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyStore:
    """The accounts and keys behind `engine`. Every method is one transaction."""

    engine: AsyncEngine

    async def create_key(
        self, *, account: str, name: str, pepper: bytes, lifetime: timedelta | None = None
    ) -> tuple[NewKey, KeyRecord]:
        """Creates a key, and its account when it does not exist; the only way to see its text.

        Raises KeyStoreError when the account or the name is not a proper one.
        """
        _check_account(account)
        _check_name(name)
        key, now = make_key(), datetime.now(UTC)
        record = KeyRecord(
            key_id=key.key_id,
            account=account,
            name=name,
            digest=digest_key(key.text, pepper),
            created=now,
            revoked_at=None,
            expires_at=None if lifetime is None else now + lifetime,
        )
        async with self.engine.begin() as connection:
            await _ensure_account(connection, account, now)
            await connection.execute(insert(keys).values(_values(record)))
        return key, record

    async def list_keys(self, *, account: str | None = None) -> Sequence[KeyRecord]:
        """All keys, or those of one account, oldest first; revoked and expired ones included."""
        query = select(keys).order_by(keys.c.created, keys.c.id)
        if account is not None:
            query = query.where(keys.c.account == account)
        async with self.engine.connect() as connection:
            return [_record(row) for row in await connection.execute(query)]

    async def revoke_key(self, key_id: str) -> KeyRecord:
        """Revokes a key for good. Raises KeyStoreError when it is unknown or revoked already."""
        now = datetime.now(UTC)
        is_active = (keys.c.id == key_id) & keys.c.revoked_at.is_(None)
        revoke = update(keys).where(is_active).values(revoked_at=now).returning(*keys.c)
        async with self.engine.begin() as connection:
            revoked = (await connection.execute(revoke)).one_or_none()
            if revoked is not None:
                return _record(revoked)
            present = await connection.scalar(select(keys.c.revoked_at).where(keys.c.id == key_id))
        if present is None:
            raise KeyStoreError(f"there is no key with the id {key_id!r}")
        raise KeyStoreError(f"key {key_id} was revoked already, at {present:%Y-%m-%d %H:%M:%S} UTC")

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        """The key with this digest in whatever state, or None."""
        async with self.engine.connect() as connection:
            row = (await connection.execute(select(keys).where(keys.c.digest == digest))).first()
        if row is None or not hmac.compare_digest(row.digest, digest):
            return None
        return _record(row)


async def _ensure_account(connection: AsyncConnection, name: str, now: datetime) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    values = {"name": name, "created": now}
    await connection.execute(dialect.insert(accounts).values(values).on_conflict_do_nothing())


def _values(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.key_id,
        "account": record.account,
        "name": record.name,
        "digest": record.digest,
        "created": record.created,
        "revoked_at": record.revoked_at,
        "expires_at": record.expires_at,
    }


def _record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(
        key_id=row.id,
        account=row.account,
        name=row.name,
        digest=row.digest,
        created=row.created,
        revoked_at=row.revoked_at,
        expires_at=row.expires_at,
    )


def _check_account(account: str) -> None:
    """Account names travel in metadata and logs: short and plain."""
    if len(account) > MAX_NAME_LENGTH or _ACCOUNT_PATTERN.fullmatch(account) is None:
        raise KeyStoreError(
            f"an account's name is 1 to {MAX_NAME_LENGTH} characters of a-z, 0-9, '.', '_', '-',"
            " and begins and ends with a letter or digit"
        )


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise KeyStoreError(f"a key's name is 1 to {MAX_NAME_LENGTH} printable characters")
