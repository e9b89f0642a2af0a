"""Usage, accounts, keys, tiers and the audit log as frozen data, read from `limner.v1`.

`Usage` is what `usage()` and `watch_usage()` of both clients return; the rest belongs to
`services.client.admin`. All credits are in millicredits: 1000 are one credit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from limner.v1 import account_pb2, admin_pb2
from services.client.enum_names import KEY_STATES, SCOPES


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What an account used in a calendar month in UTC."""

    account: str
    tier: str
    period: str
    """Like `2026-11`."""
    start: datetime
    end: datetime
    """When the month ends and the limits begin anew."""
    request_count: int
    request_limit: int | None
    """None: without limit."""
    charged_millicredits: int
    granted_millicredits: int
    """Added by an administrator for the month."""
    credit_limit_millicredits: int | None
    """The tier's, without grants; None: without limit."""
    remaining_millicredits: int | None
    """None: without limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ManagedAccount:
    """An account, as administrators see it."""

    name: str
    tier: str
    created: datetime
    suspended: datetime | None
    """Since when its keys are shut out; None: they are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key, without its text."""

    id: str
    account: str
    name: str
    scopes: tuple[str, ...]
    state: str
    """`active`, `revoked` or `expired`."""
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    last_used: datetime | None
    """Give or take a minute."""
    replaced_by: str
    """Id of the key that took its place; empty: none did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewKey:
    """A key that was just made, with its text, which the server does not keep."""

    text: str = field(repr=False)
    key: Key
    replaced: Key | None = None
    """The key that it replaces, if it was made by a rotation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """What a tier allows; None is no limit."""

    name: str
    requests_per_minute: int
    burst: int
    concurrent_requests: int
    monthly_requests: int | None
    monthly_millicredits: int | None
    models: tuple[str, ...]
    max_pixels: int
    max_step_count: int
    max_sample_count: int
    max_upscaled_megapixels: int
    priority: int
    queue_share: float
    shadow: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """A change that somebody made."""

    id: int
    time: datetime
    actor_account: str
    actor_key_id: str
    request_id: str
    action: str
    account: str
    key_id: str
    details: Mapping[str, Any]


def watch_request(interval_s: float | None) -> account_pb2.WatchUsageRequest:
    """Return the request for a watch; None is the server's default interval."""
    request = account_pb2.WatchUsageRequest()
    if interval_s is not None:
        request.interval.FromMilliseconds(round(interval_s * 1000))
    return request


def read_usage(message: account_pb2.Usage) -> Usage:
    """Return the usage in an answer."""
    return Usage(
        account=message.account,
        tier=message.tier,
        period=message.period,
        start=message.start_time.ToDatetime(tzinfo=UTC),
        end=message.end_time.ToDatetime(tzinfo=UTC),
        request_count=message.request_count,
        request_limit=_optional(message, "request_limit"),
        charged_millicredits=message.charged_millicredits,
        granted_millicredits=message.granted_millicredits,
        credit_limit_millicredits=_optional(message, "credit_limit_millicredits"),
        remaining_millicredits=_optional(message, "remaining_millicredits"),
    )


def read_managed_account(message: admin_pb2.Account) -> ManagedAccount:
    """Return the account in an answer."""
    return ManagedAccount(
        name=message.name,
        tier=message.tier,
        created=message.create_time.ToDatetime(tzinfo=UTC),
        suspended=_moment(message, "suspend_time"),
    )


def read_key(message: admin_pb2.Key) -> Key:
    """Return the key in an answer."""
    return Key(
        id=message.id,
        account=message.account,
        name=message.name,
        scopes=tuple(SCOPES.name(scope) for scope in message.scopes),
        state=KEY_STATES.name(message.state),
        created=message.create_time.ToDatetime(tzinfo=UTC),
        expires=_moment(message, "expire_time"),
        revoked=_moment(message, "revoke_time"),
        last_used=_moment(message, "last_use_time"),
        replaced_by=message.replaced_by,
    )


def read_tier(message: admin_pb2.Tier) -> Tier:
    """Return the tier in an answer."""
    return Tier(
        name=message.name,
        requests_per_minute=message.requests_per_minute,
        burst=message.burst,
        concurrent_requests=message.concurrent_requests,
        monthly_requests=_optional(message, "monthly_requests"),
        monthly_millicredits=_optional(message, "monthly_millicredits"),
        models=tuple(message.models),
        max_pixels=message.max_pixels,
        max_step_count=message.max_step_count,
        max_sample_count=message.max_sample_count,
        max_upscaled_megapixels=message.max_upscaled_megapixels,
        priority=message.priority,
        queue_share=message.queue_share,
        shadow=message.shadow,
    )


def read_audit_entry(message: admin_pb2.AuditEntry) -> AuditEntry:
    """Return the entry in an answer."""
    return AuditEntry(
        id=message.id,
        time=message.time.ToDatetime(tzinfo=UTC),
        actor_account=message.actor_account,
        actor_key_id=message.actor_key_id,
        request_id=message.request_id,
        action=message.action,
        account=message.account,
        key_id=message.key_id,
        details=json.loads(message.details_json or "{}"),
    )


def _optional(message: account_pb2.Usage | admin_pb2.Tier, name: str) -> int | None:
    present = message.HasField(name)  # type: ignore[arg-type] # the stubs want a literal
    return int(getattr(message, name)) if present else None


def _moment(message: admin_pb2.Account | admin_pb2.Key, name: str) -> datetime | None:
    if not message.HasField(name):  # type: ignore[arg-type] # as above
        return None
    moment: Timestamp = getattr(message, name)
    return moment.ToDatetime(tzinfo=UTC)
