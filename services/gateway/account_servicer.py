"""AccountService at the door: who is asking, and what the account used.

Usage is read from the ledger of record; what still runs is not in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio

from limner.v1 import account_pb2, account_pb2_grpc
from services.gateway.admin_messages import scope_numbers, usage_message
from services.gateway.admin_requests import RequestCheck
from services.gateway.authentication import current_caller
from services.gateway.ledger import Ledger
from services.gateway.metrics import GatewayMetrics
from services.gateway.outage import refused_as_unavailable
from services.gateway.period import Period
from services.gateway.tiers import Tier, TierCatalog, UnknownTierError
from services.runtime.errors import UnavailableError

_WATCH_INTERVAL = timedelta(seconds=5)
_MIN_WATCH_INTERVAL = timedelta(seconds=1)
_MAX_WATCH_INTERVAL = timedelta(hours=1)

_Context = grpc.aio.ServicerContext[Any, Any]


class AccountServicer(account_pb2_grpc.AccountServiceServicer):
    """Tells callers about their own account. `draining` ends what would go on for ever."""

    def __init__(
        self,
        ledger: Ledger,
        tiers: TierCatalog,
        *,
        metrics: GatewayMetrics,
        draining: asyncio.Event,
    ) -> None:
        self._ledger = ledger
        self._tiers = tiers
        self._metrics = metrics
        self._draining = draining

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to `server`."""
        account_pb2_grpc.add_AccountServiceServicer_to_server(self, server)

    async def GetAccount(
        self, request: account_pb2.GetAccountRequest, context: _Context
    ) -> account_pb2.GetAccountResponse:
        """The caller's account and key, without a look at the database."""
        caller = current_caller()
        response = account_pb2.GetAccountResponse(
            account=caller.account,
            key_id=caller.key_id,
            tier=caller.tier_name,
            scopes=scope_numbers(caller.scopes),
        )
        response.key_create_time.FromDatetime(caller.key_created)
        return response

    async def GetUsage(
        self, request: account_pb2.GetUsageRequest, context: _Context
    ) -> account_pb2.GetUsageResponse:
        """A month of the caller's account."""
        check = RequestCheck()
        period = check.period("period", request.period)
        check.finish()
        return account_pb2.GetUsageResponse(usage=await self._usage(period))

    async def WatchUsage(
        self, request: account_pb2.WatchUsageRequest, context: _Context
    ) -> AsyncIterator[account_pb2.WatchUsageResponse]:
        """The current month of the caller's account, at once and after each change."""
        interval = _interval(request)
        told: account_pb2.Usage | None = None
        while not self._draining.is_set():
            usage = await self._usage(Period.containing(datetime.now(UTC)))
            if usage != told:
                told = usage
                yield account_pb2.WatchUsageResponse(usage=usage)
            with suppress(TimeoutError):
                async with asyncio.timeout(interval.total_seconds()):
                    await self._draining.wait()
        raise UnavailableError(reason="SHUTTING_DOWN")

    async def _usage(self, period: Period) -> account_pb2.Usage:
        caller = current_caller()
        async with refused_as_unavailable(self._metrics):
            usage = await self._ledger.usage(caller.account, period)
        return usage_message(usage, caller.tier_name, find_tier(self._tiers, caller.tier_name))


def find_tier(tiers: TierCatalog, name: str) -> Tier | None:
    """The tier with this name, or None when the file has lost it."""
    try:
        return tiers.get(name)
    except UnknownTierError:
        return None


def _interval(request: account_pb2.WatchUsageRequest) -> timedelta:
    if not request.HasField("interval"):
        return _WATCH_INTERVAL
    check = RequestCheck()
    interval = check.duration(
        "interval", request.interval, least=_MIN_WATCH_INTERVAL, most=_MAX_WATCH_INTERVAL
    )
    check.finish()
    return interval
