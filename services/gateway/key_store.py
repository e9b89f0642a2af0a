"""API keys in SQL: create, list, rotate, revoke, find.

Called by the key cache, the admin service and `limner keys bootstrap`. It keeps digests only, never
the text of a key, and caches nothing. Every change writes an audit entry; those that shut a key out
are counted for the replicas. Names are taken as they are: `services.gateway.names` checks them.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, bindparam, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.gateway.account_store import ensure_account, require_account
from services.gateway.audit import Actor, record
from services.gateway.changes import count_change
from services.gateway.key_format import NewKey, digest_key, make_key
from services.gateway.scopes import DEFAULT_SCOPES, Scope, join_scopes, split_scopes
from services.gateway.tables import accounts, keys
from services.runtime.errors import NotFoundError, StateError
from services.storage.database import begin_write


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRecord:
    """What is stored of a key and of the account that it belongs to."""

    key_id: str
    account: str
    tier: str
    """The account's."""
    suspended_at: datetime | None
    """When the account was suspended, if it is."""
    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]
    created: datetime
    revoked_at: datetime | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    """To the minute, roughly: uses are written down in bulk."""
    replaced_by: str | None = None
    """Id of the key that took its place."""

    def state(self, now: datetime) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyStore:
    """The keys behind `engine`. Every method is one transaction."""

    engine: AsyncEngine

    async def create_key(
        self,
        *,
        account: str,
        name: str,
        pepper: bytes,
        actor: Actor,
        scopes: frozenset[Scope] = DEFAULT_SCOPES,
        lifetime: timedelta | None = None,
        new_account_tier: str | None = None,
    ) -> tuple[NewKey, KeyRecord]:
        """Creates a key; the only way to see its text.

        An account that does not exist is created with `new_account_tier`; without one, raises
        NotFoundError.
        """
        async with begin_write(self.engine) as connection:
            if new_account_tier is not None:
                await ensure_account(connection, account, tier=new_account_tier, actor=actor)
            owner = await require_account(connection, account)
            now = datetime.now(UTC)
            draft = KeyRecord(
                key_id="",
                account=account,
                tier=owner.tier,
                suspended_at=owner.suspended_at,
                name=name,
                digest=b"",
                scopes=scopes,
                created=now,
                expires_at=None if lifetime is None else now + lifetime,
            )
            key, created = await _insert(connection, draft, pepper)
            details = _details(created)
            await record(
                connection,
                actor,
                "key.create",
                account=account,
                subject=key.key_id,
                details=details,
            )
        return key, created

    async def rotate_key(
        self, key_id: str, *, overlap: timedelta, pepper: bytes, actor: Actor
    ) -> tuple[NewKey, KeyRecord, KeyRecord]:
        """Makes a key to take the place of another, which expires when `overlap` is over.

        Returns the new key's text and record, and the old key's record. Account, name, scopes and
        lifetime are the old key's. Raises NotFoundError, and StateError when the key is no longer
        active or was replaced before.
        """
        async with begin_write(self.engine) as connection:
            old = await _hold(connection, key_id)
            now = datetime.now(UTC)
            _require_active(old, now)
            lifetime = None if old.expires_at is None else old.expires_at - old.created
            expires_at = None if lifetime is None else now + lifetime
            draft = replace(old, created=now, expires_at=expires_at, last_used_at=None)
            key, new = await _insert(connection, draft, pepper)
            end = now + overlap if old.expires_at is None else min(old.expires_at, now + overlap)
            await _change(connection, key_id, {"expires_at": end, "replaced_by": new.key_id})
            details = {**_details(new), "replaces": key_id, "overlap_until": end.isoformat()}
            await record(
                connection, actor, "key.rotate", account=old.account, subject=new.key_id,
                details=details,
            )  # fmt: skip
        return key, new, replace(old, expires_at=end, replaced_by=new.key_id)

    async def revoke_key(self, key_id: str, *, actor: Actor) -> KeyRecord:
        """Revokes a key for good. Raises NotFoundError, StateError when it is revoked already."""
        async with begin_write(self.engine) as connection:
            key = await _hold(connection, key_id)
            if key.revoked_at is not None:
                raise StateError(_revoked(key), reason="KEY_REVOKED")
            now = datetime.now(UTC)
            await _change(connection, key_id, {"revoked_at": now})
            await record(connection, actor, "key.revoke", account=key.account, subject=key_id)
        return replace(key, revoked_at=now)

    async def list_keys(
        self,
        *,
        account: str | None = None,
        limit: int | None = None,
        after: tuple[datetime, str] | None = None,
    ) -> Sequence[KeyRecord]:
        """All keys, or those of one account, oldest first; revoked and expired ones included.

        `after`: creation and id of the key before the first one that is wanted.
        """
        query = _keys().order_by(keys.c.created, keys.c.id).limit(limit)
        if account is not None:
            query = query.where(keys.c.account == account)
        if after is not None:
            query = query.where(tuple_(keys.c.created, keys.c.id) > tuple_(*after))
        async with self.engine.connect() as connection:
            return [_record(row) for row in await connection.execute(query)]

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        """The key with this digest in whatever state, or None."""
        async with self.engine.connect() as connection:
            row = (await connection.execute(_keys().where(keys.c.digest == digest))).first()
        if row is None or not hmac.compare_digest(row.digest, digest):
            return None
        return _record(row)

    async def note_uses(self, uses: Mapping[str, datetime]) -> None:
        """Writes down when keys, by id, were last used; a later use in the database stays."""
        used = keys.c.last_used_at
        note = (
            update(keys)
            .where(keys.c.id == bindparam("used_id"))
            .where(or_(used.is_(None), used < bindparam("used_at")))
            .values(last_used_at=bindparam("used_at"))
        )
        rows = [{"used_id": key_id, "used_at": at} for key_id, at in sorted(uses.items())]
        async with begin_write(self.engine) as connection:
            await connection.execute(note, rows)


def _keys() -> Select[Any]:
    return select(keys, accounts.c.tier, accounts.c.suspended_at).join(accounts)


async def _hold(connection: AsyncConnection, key_id: str) -> KeyRecord:
    """A key that nobody else changes before the commit. Raises NotFoundError."""
    query = _keys().where(keys.c.id == key_id).with_for_update(of=keys)
    row = (await connection.execute(query)).first()
    if row is None:
        message = f"there is no key with the id {key_id!r:.40}"
        raise NotFoundError(message, reason="KEY_NOT_FOUND")
    return _record(row)


async def _insert(
    connection: AsyncConnection, draft: KeyRecord, pepper: bytes
) -> tuple[NewKey, KeyRecord]:
    key = make_key()
    made = replace(draft, key_id=key.key_id, digest=digest_key(key.text, pepper))
    values = {
        "id": made.key_id,
        "account": made.account,
        "name": made.name,
        "digest": made.digest,
        "created": made.created,
        "expires_at": made.expires_at,
        "scopes": join_scopes(made.scopes),
    }
    await connection.execute(insert(keys).values(values))
    return key, made


async def _change(connection: AsyncConnection, key_id: str, values: dict[str, Any]) -> None:
    await count_change(connection)
    await connection.execute(update(keys).where(keys.c.id == key_id).values(values))


def _require_active(key: KeyRecord, now: datetime) -> None:
    if key.revoked_at is not None:
        raise StateError(_revoked(key), reason="KEY_REVOKED")
    if key.replaced_by is not None:
        message = f"key {key.key_id} was replaced already, by {key.replaced_by}"
        raise StateError(message, reason="KEY_REPLACED")
    if key.expires_at is not None and key.expires_at <= now:
        message = f"key {key.key_id} expired at {key.expires_at:%Y-%m-%d %H:%M:%S} UTC"
        raise StateError(message, reason="KEY_EXPIRED")


def _revoked(key: KeyRecord) -> str:
    return f"key {key.key_id} was revoked already, at {key.revoked_at:%Y-%m-%d %H:%M:%S} UTC"


def _details(key: KeyRecord) -> dict[str, str | None]:
    expires = None if key.expires_at is None else key.expires_at.isoformat()
    return {"name": key.name, "scopes": join_scopes(key.scopes), "expires": expires}


def _record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(
        key_id=row.id,
        account=row.account,
        tier=row.tier,
        suspended_at=row.suspended_at,
        name=row.name,
        digest=row.digest,
        scopes=split_scopes(row.scopes),
        created=row.created,
        revoked_at=row.revoked_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        replaced_by=row.replaced_by,
    )
