"""The ledger of record: what was delivered and what it cost, append-only, in SQL.

Admission appends an entry for every finished artifact and puts its store right from `usage` and
`balances`; the account and admin services read the sums. An entry is unique by account, request id
and item, so that appending twice is one entry. The sums of a month are kept in the transaction that
appends: usage is one look-up however long the ledger is. It decides nothing and enforces no limit.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Executable,
    Row,
    Update,
    and_,
    bindparam,
    case,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.gateway.account_store import require_account
from services.gateway.audit import Actor, record
from services.gateway.period import Period
from services.gateway.tables import changes, credit_grants, ledger_entries, monthly_usage
from services.runtime.errors import AlreadyExistsError
from services.storage.database import begin_write, insert_in, insert_into, write_at_once

_PAGE_ROWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What an account used in a month. A request counts when one of its artifacts was delivered."""

    account: str
    period: Period
    request_count: int = 0
    charged_millicredits: int = 0
    granted_millicredits: int = 0
    """On top of the tier's monthly credits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A line of the ledger; `account`, `request_id` and `item` together are unique."""

    account: str
    request_id: str
    """At most 200 characters."""
    item: str
    """What was delivered, at most 64 characters."""
    period: str
    """The month."""
    millicredits: int
    """Below 0 it takes back what an earlier entry of the same request charged in that month."""
    service: str
    model: str
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """The ledger behind `engine`; every method is one transaction."""

    engine: AsyncEngine

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
        """Appends an entry in the month of `at`; False when it was there already, nothing changed.

        Once it returns, the entry survives a crash. `request_id` has at most 200 characters, `item`
        64. Raises ValueError for a negative amount.
        """
        entry = charged(
            account=account,
            request_id=request_id,
            item=item,
            millicredits=millicredits,
            service=service,
            model=model,
            at=at,
        )
        return await write_at_once(self.engine, lambda connection: append(connection, entry))

    async def probe(self) -> None:
        """Returns if something can be written now, which a full disk allows no more than a lost
        server; changes nothing."""
        async with begin_write(self.engine) as connection:
            await connection.execute(update(changes).values(count=changes.c.count))

    async def grant(
        self,
        *,
        account: str,
        millicredits: int,
        note: str,
        actor: Actor,
        at: datetime | None = None,
    ) -> Usage:
        """Adds credits to the month of `at`, now by default, and returns the month as it is then.

        They end with the month. The same account and `actor.request_id` again change nothing.
        Raises NotFoundError for an unknown account, AlreadyExistsError when that request granted
        another amount, ValueError for an amount that is not positive.
        """
        if millicredits <= 0:
            raise ValueError(f"a grant is positive: {millicredits}")
        at = at or datetime.now(UTC)
        period = Period.containing(at)
        async with begin_write(self.engine) as connection:
            await require_account(connection, account)
            await connection.run_sync(_hold_month, account, str(period))
            values = {
                "account": account,
                "request_id": actor.request_id,
                "period": str(period),
                "millicredits": millicredits,
                "granted_by": actor.account,
                "note": note,
                "at": at,
            }
            append = insert_into(connection, credit_grants).values(values)
            appended = append.on_conflict_do_nothing().returning(credit_grants.c.id)
            if (await connection.execute(appended)).first() is None:
                await _require_same_grant(connection, account, actor.request_id, millicredits)
                return await _read(connection, account, period)
            sums = monthly_usage.c
            await connection.execute(
                update(monthly_usage)
                .where(sums.account == account, sums.period == str(period))
                .values(granted_millicredits=sums.granted_millicredits + millicredits)
            )
            details = {"millicredits": millicredits, "period": str(period), "note": note}
            await record(connection, actor, "credits.grant", account=account, details=details)
            return await _read(connection, account, period)

    async def usage(
        self, account: str, period: Period, *, excluding: Collection[str] = ()
    ) -> Usage:
        """What an account used in a month; nothing for an account that does not exist.

        Requests whose id is in `excluding` do not count. One consistent look, whoever appends.
        """
        async with self.engine.connect() as connection:
            return await _read(connection, account, period, excluding)

    async def balances(self, period: Period) -> AsyncIterator[Usage]:
        """All accounts that used something or were granted credits in a month, by name.

        A page at a time: what changes meanwhile may be seen or not, no account is seen twice.
        """
        last = ""
        while True:
            page = (
                select(monthly_usage)
                .where(monthly_usage.c.period == str(period), monthly_usage.c.account > last)
                .order_by(monthly_usage.c.account)
                .limit(_PAGE_ROWS)
            )
            async with self.engine.connect() as connection:
                rows = (await connection.execute(page)).all()
            for row in rows:
                yield _usage(row, period)
            if len(rows) < _PAGE_ROWS:
                return
            last = rows[-1].account


def charged(
    *,
    account: str,
    request_id: str,
    item: str,
    millicredits: int,
    service: str,
    model: str,
    at: datetime,
) -> Entry:
    """The entry of a charge, in the month of `at`. Raises ValueError for a negative amount."""
    if millicredits < 0:
        raise ValueError(f"a charge is not negative: {millicredits}")
    return Entry(
        account=account,
        request_id=request_id,
        item=item,
        period=str(Period.containing(at)),
        millicredits=millicredits,
        service=service,
        model=model,
        at=at,
    )


def append(connection: Connection, entry: Entry) -> bool:
    """Appends an entry in the caller's transaction; False when it was there already."""
    _hold_month(connection, entry.account, entry.period)
    values = asdict(entry)
    if connection.execute(_appending(connection.dialect.name), values).first() is None:
        return False
    connection.execute(_COUNTING, {f"entry_{name}": value for name, value in values.items()})
    return True


def _hold_month(connection: Connection, account: str, period: str) -> None:
    """Makes the row of sums if it is new, and lets nobody else change it before the commit.

    Statements after this one see what those who held it before have committed.
    """
    zeros = {"request_count": 0, "charged_millicredits": 0, "granted_millicredits": 0}
    values = {"account": account, "period": period, **zeros}
    connection.execute(_holding(connection.dialect.name), values)


# Made once, as making a statement takes longer than executing it.


@functools.cache
def _holding(dialect_name: str) -> Executable:
    return insert_in(dialect_name, monthly_usage).on_conflict_do_update(
        index_elements=[monthly_usage.c.period, monthly_usage.c.account],
        set_={"account": monthly_usage.c.account},
    )


@functools.cache
def _appending(dialect_name: str) -> Executable:
    insert = insert_in(dialect_name, ledger_entries)
    return insert.on_conflict_do_nothing().returning(ledger_entries.c.id)


def _counting() -> Update:
    """Adds an entry, with `entry_` before the names of its fields, to the sums of its month."""
    entries, sums = ledger_entries.c, monthly_usage.c
    has_other_item = exists().where(
        entries.account == bindparam("entry_account"),
        entries.request_id == bindparam("entry_request_id"),
        entries.item != bindparam("entry_item"),
    )
    return (
        update(monthly_usage)
        .where(sums.account == bindparam("entry_account"), sums.period == bindparam("entry_period"))
        .values(
            request_count=sums.request_count + case((has_other_item, 0), else_=1),
            charged_millicredits=sums.charged_millicredits + bindparam("entry_millicredits"),
        )
    )


_COUNTING = _counting()


async def _require_same_grant(
    connection: AsyncConnection, account: str, request_id: str, millicredits: int
) -> None:
    grants = credit_grants.c
    query = select(grants.millicredits)
    query = query.where(grants.account == account, grants.request_id == request_id)
    if (granted := await connection.scalar(query)) != millicredits:
        raise AlreadyExistsError(
            f"the request {request_id} granted {granted} millicredits before, not {millicredits}",
            reason="GRANT_DIFFERS",
        )


async def _read(
    connection: AsyncConnection, account: str, period: Period, excluding: Collection[str] = ()
) -> Usage:
    sums = monthly_usage.c
    query = select(monthly_usage).where(sums.account == account, sums.period == str(period))
    if excluding:
        query = query.with_only_columns(*_sums_without(account, str(period), excluding))
    row = (await connection.execute(query)).first()
    return Usage(account=account, period=period) if row is None else _usage(row, period)


def _sums_without(account: str, period: str, request_ids: Collection[str]) -> Sequence[Any]:
    """The columns of `monthly_usage`, less what these requests put into them."""
    entries, sums = ledger_entries.c, monthly_usage.c
    theirs = and_(entries.account == account, entries.request_id.in_(request_ids))
    charged = select(func.coalesce(func.sum(entries.millicredits), 0))
    # A request counts in the month of its first artifact.
    begun = select(entries.request_id).where(theirs).group_by(entries.request_id)
    begun = begun.having(func.min(entries.period) == period)
    request_count = select(func.count()).select_from(begun.subquery()).scalar_subquery()
    charged_here = charged.where(theirs, entries.period == period).scalar_subquery()
    return (
        sums.account,
        (sums.request_count - request_count).label("request_count"),
        (sums.charged_millicredits - charged_here).label("charged_millicredits"),
        sums.granted_millicredits,
    )


def _usage(row: Row[Any], period: Period) -> Usage:
    return Usage(
        account=row.account,
        period=period,
        request_count=row.request_count,
        charged_millicredits=int(row.charged_millicredits),  # a sum is a Decimal in PostgreSQL
        granted_millicredits=row.granted_millicredits,
    )
