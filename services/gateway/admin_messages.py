"""Accounts, keys, tiers, usage and audit entries as protobuf messages.

Used by the account and the admin servicer; nothing else of those services knows protobuf types.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from limner.v1 import account_pb2, admin_pb2
from services.gateway.account_store import AccountRecord
from services.gateway.audit import AuditEntry
from services.gateway.key_store import KeyRecord
from services.gateway.ledger import Usage
from services.gateway.scopes import Scope
from services.gateway.tiers import Tier

SCOPE_NUMBERS: dict[Scope, account_pb2.Scope.ValueType] = {
    "generate": account_pb2.SCOPE_GENERATE,
    "upscale": account_pb2.SCOPE_UPSCALE,
    "train": account_pb2.SCOPE_TRAIN,
    "admin": account_pb2.SCOPE_ADMIN,
}
SCOPE_NAMES: dict[int, Scope] = {number: name for name, number in SCOPE_NUMBERS.items()}

_STATES = {
    "active": admin_pb2.Key.STATE_ACTIVE,
    "revoked": admin_pb2.Key.STATE_REVOKED,
    "expired": admin_pb2.Key.STATE_EXPIRED,
}


def scope_numbers(scopes: Iterable[Scope]) -> list[account_pb2.Scope.ValueType]:
    """Scopes, in the order of the contract."""
    return sorted(SCOPE_NUMBERS[scope] for scope in scopes)


def account_message(account: AccountRecord) -> admin_pb2.Account:
    """An account."""
    return admin_pb2.Account(
        name=account.name,
        tier=account.tier,
        create_time=_timestamp(account.created),
        suspend_time=_timestamp(account.suspended_at),
    )


def key_message(key: KeyRecord) -> admin_pb2.Key:
    """A key, in the state that it is in now."""
    return admin_pb2.Key(
        id=key.key_id,
        account=key.account,
        name=key.name,
        scopes=scope_numbers(key.scopes),
        state=_STATES[key.state(datetime.now(UTC))],
        create_time=_timestamp(key.created),
        expire_time=_timestamp(key.expires_at),
        revoke_time=_timestamp(key.revoked_at),
        last_use_time=_timestamp(key.last_used_at),
        replaced_by=key.replaced_by or "",
    )


def tier_message(tier: Tier) -> admin_pb2.Tier:
    """A tier."""
    return admin_pb2.Tier(
        name=tier.name,
        requests_per_minute=tier.requests_per_minute,
        burst=tier.burst,
        concurrent_requests=tier.concurrent_requests,
        monthly_requests=tier.monthly_requests,
        monthly_millicredits=tier.monthly_millicredits,
        models=tier.models,
        max_pixels=tier.max_pixels,
        max_step_count=tier.max_step_count,
        max_sample_count=tier.max_sample_count,
        max_upscaled_megapixels=tier.max_upscaled_megapixels,
        priority=tier.priority,
        queue_share=tier.queue_share,
        shadow=tier.shadow,
    )


def usage_message(usage: Usage, tier_name: str, tier: Tier | None) -> account_pb2.Usage:
    """A month of an account beside the limits of its tier; None: the tier does not exist."""
    message = account_pb2.Usage(
        account=usage.account,
        tier=tier_name,
        period=str(usage.period),
        start_time=_timestamp(usage.period.start),
        end_time=_timestamp(usage.period.end),
        request_count=usage.request_count,
        charged_millicredits=usage.charged_millicredits,
        granted_millicredits=usage.granted_millicredits,
    )
    if tier is not None and tier.monthly_requests is not None:
        message.request_limit = tier.monthly_requests
    if tier is not None and tier.monthly_millicredits is not None:
        message.credit_limit_millicredits = tier.monthly_millicredits
        allowed = tier.monthly_millicredits + usage.granted_millicredits
        message.remaining_millicredits = max(0, allowed - usage.charged_millicredits)
    return message


def audit_message(entry: AuditEntry) -> admin_pb2.AuditEntry:
    """An entry of the audit log."""
    return admin_pb2.AuditEntry(
        id=entry.id,
        time=_timestamp(entry.at),
        actor_account=entry.actor.account,
        actor_key_id=entry.actor.key_id,
        request_id=entry.actor.request_id,
        action=entry.action,
        account=entry.account,
        key_id=entry.subject,
        details_json=json.dumps(dict(entry.details), ensure_ascii=False),
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message
