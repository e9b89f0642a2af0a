"""Admission state in this process's memory: the default, right for one gateway.

Nothing is awaited inside a verb, which makes it atomic on the event loop. State is lost with the
process and rebuilt from the ledger; several gateways need `redis_store` to share it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

from services.gateway.admission.account_book import AccountBook
from services.gateway.admission.store import (
    Balance,
    Claim,
    Decision,
    Expired,
    Renewal,
    Snapshot,
    Ticket,
)

_FORGET_AFTER_MS = 24 * 3600 * 1000


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class InMemoryStore:
    """An `AdmissionStore` on the clock `now_ms` (milliseconds since 1970). Never raises StoreError.

    An account that runs nothing and was not touched for a day is forgotten when it is swept.
    """

    is_immediate = True

    def __init__(self, now_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._now_ms = now_ms
        self._books: dict[str, AccountBook] = {}

    async def admit(self, claim: Claim) -> Decision:
        """See `AdmissionStore`."""
        now_ms = self._now_ms()
        return self._book(claim.ticket.account, now_ms).admit(claim, now_ms)

    async def renew(self, ticket: Ticket, *, reserve_millicredits: int, lease_ms: int) -> Renewal:
        """See `AdmissionStore`."""
        now_ms = self._now_ms()
        book = self._book(ticket.account, now_ms)
        return book.renew(ticket, reserve_millicredits, lease_ms, now_ms)

    async def close(
        self,
        ticket: Ticket,
        *,
        request_count: int,
        charged_millicredits: int,
        is_doubtful: bool = False,
    ) -> bool:
        """See `AdmissionStore`."""
        now_ms = self._now_ms()
        book = self._book(ticket.account, now_ms)
        return book.close(ticket, request_count, charged_millicredits, is_doubtful, now_ms)

    async def snapshot(self, account: str) -> Snapshot:
        """See `AdmissionStore`."""
        now_ms = self._now_ms()
        return self._book(account, now_ms).snapshot(now_ms)

    async def set_balance(self, account: str, balance: Balance, *, revision: int) -> bool:
        """See `AdmissionStore`."""
        now_ms = self._now_ms()
        return self._book(account, now_ms).set_balance(balance, revision, now_ms)

    async def sweep(self, account: str) -> Expired:
        """See `AdmissionStore`."""
        book = self._books.get(account)
        if book is None:
            return Expired()
        now_ms = self._now_ms()
        if book.is_idle and now_ms - book.used_ms >= _FORGET_AFTER_MS:
            del self._books[account]
            return Expired()
        used_ms = book.used_ms
        expired = book.sweep(now_ms)
        book.used_ms = used_ms  # being swept is not being used
        return expired

    async def accounts(self) -> AsyncIterator[str]:
        """See `AdmissionStore`."""
        for account in list(self._books):
            yield account

    async def close_store(self) -> None:
        """Nothing to let go of."""

    def _book(self, account: str, now_ms: int) -> AccountBook:
        book = self._books.get(account)
        if book is None:
            book = self._books[account] = AccountBook(now_ms)
        return book
