"""Administration over AdminService: what `limner accounts`, `keys`, `tiers` and `audit` call.

Reached as `Client.admin`; needs a key with the scope `admin`. Changes are made once and never
repeated by themselves: a failed call may have made its change. Lists go on to the last page by
themselves. All methods raise LimnerError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration

from limner.v1 import account_pb2, admin_pb2, admin_pb2_grpc
from services.client.accounts import (
    AuditEntry,
    Key,
    ManagedAccount,
    NewKey,
    Tier,
    Usage,
    read_audit_entry,
    read_key,
    read_managed_account,
    read_tier,
    read_usage,
)
from services.client.enum_names import SCOPES

_Request = TypeVar("_Request", contravariant=True)
_Response = TypeVar("_Response", covariant=True)

_PAGE_SIZE = 500


class Call(Protocol):
    """Makes a call, with the client's key and deadline."""

    def __call__(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout_s: float | None = None,
        *,
        repeatable: bool = True,
    ) -> _Response:
        """Make the call; again while that is safe, never when it is not `repeatable`."""
        ...


class Admin:
    """Accounts, keys, tiers and the audit log of a gateway."""

    def __init__(self, channel: grpc.Channel, call: Call) -> None:
        self._stub = admin_pb2_grpc.AdminServiceStub(channel)
        self._call = call

    def create_account(self, name: str, *, tier: str = "") -> ManagedAccount:
        """Create an account; the tier is `free` unless named."""
        request = admin_pb2.CreateAccountRequest(name=name, tier=tier)
        response = self._call(self._stub.CreateAccount, request, repeatable=False)
        return read_managed_account(response.account)

    def accounts(self) -> Iterator[ManagedAccount]:
        """Yield all accounts, by name."""
        request = admin_pb2.ListAccountsRequest(page_size=_PAGE_SIZE)
        while True:
            page = self._call(self._stub.ListAccounts, request)
            yield from map(read_managed_account, page.accounts)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def set_tier(self, account: str, tier: str) -> ManagedAccount:
        """Change an account's tier."""
        request = admin_pb2.SetAccountTierRequest(account=account, tier=tier)
        response = self._call(self._stub.SetAccountTier, request, repeatable=False)
        return read_managed_account(response.account)

    def suspend(self, account: str) -> ManagedAccount:
        """Shut all keys of an account out."""
        request = admin_pb2.SuspendAccountRequest(account=account)
        response = self._call(self._stub.SuspendAccount, request, repeatable=False)
        return read_managed_account(response.account)

    def resume(self, account: str) -> ManagedAccount:
        """Let the keys of an account in again."""
        request = admin_pb2.ResumeAccountRequest(account=account)
        response = self._call(self._stub.ResumeAccount, request, repeatable=False)
        return read_managed_account(response.account)

    def usage(self, account: str, period: str = "") -> Usage:
        """Return what an account used in a month like `2026-11`, by default this one."""
        request = admin_pb2.GetAccountUsageRequest(account=account, period=period)
        return read_usage(self._call(self._stub.GetAccountUsage, request).usage)

    def grant(self, account: str, millicredits: int, *, note: str = "") -> Usage:
        """Add credits to an account's current month and return the month."""
        request = admin_pb2.GrantCreditsRequest(
            account=account, millicredits=millicredits, note=note
        )
        return read_usage(self._call(self._stub.GrantCredits, request, repeatable=False).usage)

    def create_key(
        self,
        account: str,
        name: str,
        *,
        scopes: Sequence[str] = (),
        lifetime: timedelta | None = None,
    ) -> NewKey:
        """Create a key; its text is here and nowhere else. No scopes: all but `admin`.

        Raises ArgumentError for an unknown scope.
        """
        request = admin_pb2.CreateKeyRequest(account=account, name=name)
        request.scopes.extend(_scopes(scopes))
        if lifetime is not None:
            request.lifetime.FromTimedelta(lifetime)
        response = self._call(self._stub.CreateKey, request, repeatable=False)
        return NewKey(text=response.text, key=read_key(response.key))

    def keys(self, account: str = "") -> Iterator[Key]:
        """Yield the keys of an account, or all, oldest first."""
        request = admin_pb2.ListKeysRequest(account=account, page_size=_PAGE_SIZE)
        while True:
            page = self._call(self._stub.ListKeys, request)
            yield from map(read_key, page.keys)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def rotate_key(self, key_id: str, *, overlap: timedelta | None = None) -> NewKey:
        """Create a key in place of another, which stays good for `overlap`; None: a day."""
        request = admin_pb2.RotateKeyRequest(key_id=key_id)
        if overlap is not None:
            duration = Duration()
            duration.FromTimedelta(overlap)
            request.overlap.CopyFrom(duration)
        response = self._call(self._stub.RotateKey, request, repeatable=False)
        return NewKey(
            text=response.text,
            key=read_key(response.key),
            replaced=read_key(response.replaced_key),
        )

    def revoke_key(self, key_id: str) -> Key:
        """Revoke a key for good."""
        request = admin_pb2.RevokeKeyRequest(key_id=key_id)
        return read_key(self._call(self._stub.RevokeKey, request, repeatable=False).key)

    def tiers(self) -> tuple[Tier, ...]:
        """Return the tiers, by name."""
        response = self._call(self._stub.ListTiers, admin_pb2.ListTiersRequest())
        return tuple(map(read_tier, response.tiers))

    def audit_entries(self, account: str = "", *, limit: int = 100) -> tuple[AuditEntry, ...]:
        """Return the newest `limit` changes, of one account or all."""
        found: list[AuditEntry] = []
        request = admin_pb2.ListAuditEntriesRequest(account=account)
        while len(found) < limit:
            request.page_size = min(_PAGE_SIZE, limit - len(found))
            page = self._call(self._stub.ListAuditEntries, request)
            found += map(read_audit_entry, page.entries)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return tuple(found)


def _scopes(names: Sequence[str]) -> list[account_pb2.Scope.ValueType]:
    return [
        cast("account_pb2.Scope.ValueType", SCOPES.number(name, field="scopes")) for name in names
    ]
