"""Puts the store right from the ledger: balances that it never knew, lost or got wrong.

Called by `control` when the store does not know an account, after a lease ended in a way that the
store did not see, when credits were granted, at start, and on a timer.

The ledger has what was charged, also by requests that still run; the store has these as
reservations. A balance is therefore what the ledger says without the requests that run in the
store, and it is taken only if no lease changed between the two looks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import TypeAlias

from services.gateway.admission.guarded_ledger import GuardedLedger, LedgerDownError
from services.gateway.admission.store import AdmissionStore, Balance, StoreError, Usage
from services.gateway.metrics import GatewayMetrics

_ATTEMPTS = 20

_log = logging.getLogger(__name__)


Restore: TypeAlias = Callable[[str, Collection[str]], Awaitable[bool]]
"""Puts leases back of an account of which the store has only those with these claim ids; whether
there were any."""


class Reconciliation:
    """Corrects `store` from `ledger`, after `restore` where the store did not know an account."""

    def __init__(
        self,
        store: AdmissionStore,
        ledger: GuardedLedger,
        metrics: GatewayMetrics,
        *,
        restore: Restore,
    ) -> None:
        self._store = store
        self._restore = restore
        self._ledger = ledger
        self._metrics = metrics
        self._running: dict[str, asyncio.Task[bool]] = {}
        self._suspects: set[str] = set()

    def suspect(self, account: str) -> None:
        """Has the account corrected soon."""
        self._suspects.add(account)

    async def correct(self, account: str) -> bool:
        """Sets the account's balance; False when its leases changed all the time.

        Calls for the same account at the same time share one correction. Raises StoreError,
        LedgerDownError.
        """
        task = self._running.get(account)
        if task is None:
            task = asyncio.create_task(self._correct(account))
            self._running[account] = task
            task.add_done_callback(lambda done: self._forget(account, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends corrections that nobody waits for any more."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, account: str, done: asyncio.Task[bool]) -> None:
        del self._running[account]
        if not done.cancelled():
            done.exception()  # whoever waited has it; everybody who waited may be gone

    async def correct_suspects(self) -> None:
        """Corrects what was suspected; what cannot be corrected now stays suspected."""
        for account in list(self._suspects):
            if await self._corrected(account):
                self._suspects.discard(account)

    async def correct_all(self) -> None:
        """Corrects every account that the store knows; failures are logged and left for later."""
        try:
            async for account in self._store.accounts():
                if not await self._corrected(account):
                    self._suspects.add(account)
        except StoreError as error:
            _log.warning("balances not corrected", extra={"why": str(error)})

    async def _corrected(self, account: str) -> bool:
        try:
            return await self.correct(account)
        except (StoreError, LedgerDownError) as error:
            extra = {"account": account, "why": str(error)}
            _log.warning("a balance was not corrected", extra=extra)
            return False

    async def _correct(self, account: str) -> bool:
        for _ in range(_ATTEMPTS):
            seen = await self._store.snapshot(account)
            if not seen.is_known and await self._restore(account, seen.running):
                continue
            period = seen.usage.period
            usage = await self._ledger.usage(account, period, excluding=seen.running)
            balance = Balance(
                period=period,
                request_count=usage.request_count,
                charged_millicredits=usage.charged_millicredits,
                granted_millicredits=usage.granted_millicredits,
            )
            if seen.is_known and balance == _balance(seen.usage):
                return True
            if await self._store.set_balance(account, balance, revision=seen.revision):
                if seen.is_known:
                    self._metrics.balance_corrections.inc()
                    extra = {"account": account, "period": str(balance.period)}
                    _log.warning("a balance was corrected from the ledger", extra=extra)
                return True
        return False


def _balance(usage: Usage) -> Balance:
    return Balance(
        period=usage.period,
        request_count=usage.request_count,
        charged_millicredits=usage.charged_millicredits,
        granted_millicredits=usage.granted_millicredits,
    )
