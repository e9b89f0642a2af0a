"""AdminService at the door: accounts, keys, tiers, credits and the audit log.

Every handler asks for the scope `admin`, checks the whole request, makes one change or reads one
page, and answers. A change counts on this replica before the answer; elsewhere within two seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio

from limner.v1 import account_pb2, admin_pb2, admin_pb2_grpc
from services.gateway.account_servicer import find_tier
from services.gateway.account_store import AccountRecord, AccountStore
from services.gateway.admin_messages import (
    account_message,
    audit_message,
    key_message,
    tier_message,
    usage_message,
)
from services.gateway.admin_requests import RequestCheck, page_token
from services.gateway.audit import Actor, AuditLog
from services.gateway.authentication import current_caller
from services.gateway.key_store import KeyStore
from services.gateway.ledger import Ledger, Usage
from services.gateway.metrics import GatewayMetrics
from services.gateway.names import MAX_KEY_LIFETIME
from services.gateway.outage import refused_as_unavailable
from services.gateway.tiers import DEFAULT_TIER, TierCatalog
from services.runtime.context import current_request

_MIN_LIFETIME = timedelta(minutes=1)
_DEFAULT_OVERLAP, _MAX_OVERLAP = timedelta(hours=24), timedelta(days=90)

_Context = grpc.aio.ServicerContext[Any, Any]


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Serves administrators. `on_change` is awaited with the account after each change."""

    def __init__(
        self,
        *,
        accounts: AccountStore,
        keys: KeyStore,
        ledger: Ledger,
        audit: AuditLog,
        tiers: TierCatalog,
        pepper: bytes,
        metrics: GatewayMetrics,
        on_change: Callable[[str], Awaitable[None]],
    ) -> None:
        self._accounts = accounts
        self._keys = keys
        self._ledger = ledger
        self._audit = audit
        self._tiers = tiers
        self._pepper = pepper
        self._metrics = metrics
        self._on_change = on_change

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to `server`."""
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, server)

    async def CreateAccount(
        self, request: admin_pb2.CreateAccountRequest, context: _Context
    ) -> admin_pb2.CreateAccountResponse:
        """Creates an account."""
        actor, check = _actor(), RequestCheck()
        name = check.account("name", request.name)
        tier = check.tier("tier", request.tier or DEFAULT_TIER, self._tiers)
        check.finish()
        async with refused_as_unavailable(self._metrics):
            account = await self._accounts.create_account(name, tier=tier, actor=actor)
        return admin_pb2.CreateAccountResponse(account=account_message(account))

    async def ListAccounts(
        self, request: admin_pb2.ListAccountsRequest, context: _Context
    ) -> admin_pb2.ListAccountsResponse:
        """A page of accounts."""
        _actor()
        check = RequestCheck()
        size = check.page_size("page_size", request.page_size)
        after = check.account_cursor("page_token", request.page_token)
        check.finish()
        async with refused_as_unavailable(self._metrics):
            page = await self._accounts.list_accounts(limit=size, after=after)
        return admin_pb2.ListAccountsResponse(
            accounts=map(account_message, page),
            next_page_token=page_token(page[-1].name) if len(page) == size else "",
        )

    async def SetAccountTier(
        self, request: admin_pb2.SetAccountTierRequest, context: _Context
    ) -> admin_pb2.SetAccountTierResponse:
        """Changes an account's tier."""
        actor, check = _actor(), RequestCheck()
        name = check.account("account", request.account)
        tier = check.tier("tier", request.tier, self._tiers)
        check.finish()
        account = await self._changed(self._accounts.set_tier(name, tier=tier, actor=actor))
        return admin_pb2.SetAccountTierResponse(account=account_message(account))

    async def SuspendAccount(
        self, request: admin_pb2.SuspendAccountRequest, context: _Context
    ) -> admin_pb2.SuspendAccountResponse:
        """Shuts the keys of an account out."""
        actor, check = _actor(), RequestCheck()
        name = check.account("account", request.account)
        check.finish()
        account = await self._changed(self._accounts.suspend(name, actor=actor))
        return admin_pb2.SuspendAccountResponse(account=account_message(account))

    async def ResumeAccount(
        self, request: admin_pb2.ResumeAccountRequest, context: _Context
    ) -> admin_pb2.ResumeAccountResponse:
        """Lets the keys of an account in again."""
        actor, check = _actor(), RequestCheck()
        name = check.account("account", request.account)
        check.finish()
        account = await self._changed(self._accounts.resume(name, actor=actor))
        return admin_pb2.ResumeAccountResponse(account=account_message(account))

    async def GetAccountUsage(
        self, request: admin_pb2.GetAccountUsageRequest, context: _Context
    ) -> admin_pb2.GetAccountUsageResponse:
        """A month of an account."""
        _actor()
        check = RequestCheck()
        name = check.account("account", request.account)
        period = check.period("period", request.period)
        check.finish()
        async with refused_as_unavailable(self._metrics):
            account = await self._accounts.find_account(name)
            usage = await self._ledger.usage(name, period)
        return admin_pb2.GetAccountUsageResponse(usage=self._usage(usage, account))

    async def GrantCredits(
        self, request: admin_pb2.GrantCreditsRequest, context: _Context
    ) -> admin_pb2.GrantCreditsResponse:
        """Adds credits to the current month of an account."""
        actor, check = _actor(), RequestCheck()
        name = check.account("account", request.account)
        millicredits = check.grant("millicredits", request.millicredits)
        note = check.note("note", request.note)
        check.finish()
        async with refused_as_unavailable(self._metrics):
            account = await self._accounts.find_account(name)
            usage = await self._ledger.grant(
                account=name, millicredits=millicredits, note=note, actor=actor
            )
        await self._on_change(name)
        return admin_pb2.GrantCreditsResponse(usage=self._usage(usage, account))

    async def CreateKey(
        self, request: admin_pb2.CreateKeyRequest, context: _Context
    ) -> admin_pb2.CreateKeyResponse:
        """Creates a key."""
        actor, check = _actor(), RequestCheck()
        account = check.account("account", request.account)
        name = check.key_name("name", request.name)
        scopes = check.scopes("scopes", request.scopes)
        lifetime = None
        if request.HasField("lifetime"):
            lifetime = check.duration(
                "lifetime", request.lifetime, least=_MIN_LIFETIME, most=MAX_KEY_LIFETIME
            )
        check.finish()
        async with refused_as_unavailable(self._metrics):
            key, record = await self._keys.create_key(
                account=account,
                name=name,
                pepper=self._pepper,
                actor=actor,
                scopes=scopes,
                lifetime=lifetime,
            )
        return admin_pb2.CreateKeyResponse(text=key.text, key=key_message(record))

    async def ListKeys(
        self, request: admin_pb2.ListKeysRequest, context: _Context
    ) -> admin_pb2.ListKeysResponse:
        """A page of keys."""
        _actor()
        check = RequestCheck()
        account = check.optional_account("account", request.account)
        size = check.page_size("page_size", request.page_size)
        after = check.key_cursor("page_token", request.page_token)
        check.finish()
        async with refused_as_unavailable(self._metrics):
            page = await self._keys.list_keys(account=account, limit=size, after=after)
        token = ""
        if len(page) == size:
            token = page_token(f"{page[-1].created.isoformat()} {page[-1].key_id}")
        return admin_pb2.ListKeysResponse(keys=map(key_message, page), next_page_token=token)

    async def RotateKey(
        self, request: admin_pb2.RotateKeyRequest, context: _Context
    ) -> admin_pb2.RotateKeyResponse:
        """Replaces a key."""
        actor, check = _actor(), RequestCheck()
        key_id = check.key_id("key_id", request.key_id)
        overlap = _DEFAULT_OVERLAP
        if request.HasField("overlap"):
            overlap = check.duration(
                "overlap", request.overlap, least=timedelta(0), most=_MAX_OVERLAP
            )
        check.finish()
        async with refused_as_unavailable(self._metrics):
            key, new, old = await self._keys.rotate_key(
                key_id, overlap=overlap, pepper=self._pepper, actor=actor
            )
        await self._on_change(old.account)
        return admin_pb2.RotateKeyResponse(
            text=key.text, key=key_message(new), replaced_key=key_message(old)
        )

    async def RevokeKey(
        self, request: admin_pb2.RevokeKeyRequest, context: _Context
    ) -> admin_pb2.RevokeKeyResponse:
        """Revokes a key."""
        actor, check = _actor(), RequestCheck()
        key_id = check.key_id("key_id", request.key_id)
        check.finish()
        async with refused_as_unavailable(self._metrics):
            key = await self._keys.revoke_key(key_id, actor=actor)
        await self._on_change(key.account)
        return admin_pb2.RevokeKeyResponse(key=key_message(key))

    async def ListTiers(
        self, request: admin_pb2.ListTiersRequest, context: _Context
    ) -> admin_pb2.ListTiersResponse:
        """All tiers."""
        _actor()
        return admin_pb2.ListTiersResponse(tiers=map(tier_message, self._tiers.list_tiers()))

    async def ListAuditEntries(
        self, request: admin_pb2.ListAuditEntriesRequest, context: _Context
    ) -> admin_pb2.ListAuditEntriesResponse:
        """A page of changes."""
        _actor()
        check = RequestCheck()
        account = check.optional_account("account", request.account)
        size = check.page_size("page_size", request.page_size)
        before_id = check.entry_cursor("page_token", request.page_token)
        check.finish()
        async with refused_as_unavailable(self._metrics):
            page = await self._audit.list_entries(limit=size, account=account, before_id=before_id)
        return admin_pb2.ListAuditEntriesResponse(
            entries=map(audit_message, page),
            next_page_token=page_token(str(page[-1].id)) if len(page) == size else "",
        )

    async def _changed(self, change: Awaitable[AccountRecord]) -> AccountRecord:
        async with refused_as_unavailable(self._metrics):
            account = await change
        await self._on_change(account.name)
        return account

    def _usage(self, usage: Usage, account: AccountRecord) -> account_pb2.Usage:
        return usage_message(usage, account.tier, find_tier(self._tiers, account.tier))


def _actor() -> Actor:
    """Who asks. Raises PermissionDeniedError unless the key has the scope `admin`."""
    caller = current_caller()
    caller.require("admin")
    request_id = current_request().request_id
    return Actor(account=caller.account, key_id=caller.key_id, request_id=request_id)
