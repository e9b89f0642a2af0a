"""Charges that wait at the same time are committed together: one sync of the disk for all of them.

Stands before a ledger in SQLite, which has one writer at a time, for admission; PostgreSQL commits
several at once by itself. A charge that comes alone is committed at once; those that come while a
commit is under way are the next group. Each is told only after its commit, and if a group fails,
each of it is tried alone, so that what is wrong with one is told of that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime
from typing import TypeAlias

from sqlalchemy.exc import SQLAlchemyError

from services.gateway.ledger import Entry, Ledger, Usage, append, charged
from services.gateway.period import Period
from services.storage.database import write_at_once

_LARGEST = 64
_TIMEOUT_S = 5.0

_Waiting: TypeAlias = "tuple[Entry, asyncio.Future[bool]]"


class GroupedLedger:
    """`ledger` with charges in groups; the rest as it is."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._engine = ledger.engine
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None

    async def charge(
        self,
        *,
        account: str,
        request_id: str,
        item: str,
        millicredits: int,
        service: str,
        model: str,
        at: datetime,
    ) -> bool:
        """See `Ledger.charge`. A caller that is cancelled may have been charged or not."""
        entry = charged(
            account=account,
            request_id=request_id,
            item=item,
            millicredits=millicredits,
            service=service,
            model=model,
            at=at,
        )
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, told))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await told

    async def probe(self) -> None:
        """See `Ledger.probe`."""
        await self._ledger.probe()

    async def usage(
        self, account: str, period: Period, *, excluding: Collection[str] = ()
    ) -> Usage:
        """See `Ledger.usage`."""
        return await self._ledger.usage(account, period, excluding=excluding)

    async def _write(self) -> None:
        group: list[_Waiting] = []
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:_LARGEST], self._waiting[_LARGEST:]
                await self._commit(group)
        finally:
            left, self._waiting, self._writer = [*group, *self._waiting], [], None
            for _, told in left:
                told.cancel()  # changes nothing of what was told

    async def _commit(self, group: list[_Waiting]) -> None:
        group = [each for each in group if not each[1].done()]  # the rest gave up
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                appended = await write_at_once(
                    self._engine,
                    lambda connection: [append(connection, entry) for entry, _ in group],
                )
        except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
            if len(group) > 1:
                for each in group:
                    await self._commit([each])
            for _, told in group:
                if not told.done():
                    told.set_exception(error)
            return
        for (_, told), is_new in zip(group, appended, strict=True):
            if not told.done():
                told.set_result(is_new)
