"""The ledger of record as admission sees it: with a timeout, a circuit breaker and a metric.

Charges are always tried, for the work is done; look-ups are refused at once while the ledger is
known to be away. A ledger that can be read and not written, as on a full disk, is away for what has
to be charged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from services.gateway.admission.guard import CircuitBreaker
from services.gateway.ledger import Usage
from services.gateway.metrics import GatewayMetrics
from services.gateway.period import Period
from services.storage.database import explain, is_outage

LEDGER_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class LedgerDownError(Exception):
    """The ledger did not answer, or not in time; a charge may have happened or not."""


class Ledger(Protocol):
    """What admission needs of the ledger of record, see `services.gateway.ledger`."""

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
        """Appends an entry; False when it was there already."""

    async def probe(self) -> None:
        """Returns if an entry could be appended."""

    async def usage(
        self, account: str, period: Period, *, excluding: Collection[str] = ()
    ) -> Usage:
        """The month of an account without the requests `excluding`."""


class GuardedLedger:
    """`ledger`, raising LedgerDownError where it is away for `timeout_s` or longer."""

    def __init__(
        self,
        ledger: Ledger,
        metrics: GatewayMetrics,
        *,
        timeout_s: float = LEDGER_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._reading = CircuitBreaker(clock=clock)
        self._writing = CircuitBreaker(clock=clock)

    async def require(self) -> None:
        """Returns if a charge is going to succeed, as far as that is known.

        After one that failed a probe has to succeed first. Raises LedgerDownError.
        """
        if not self._is_failing:
            return
        if not self._writing.allows():
            raise LedgerDownError("the ledger cannot be written")
        with self._watched(self._writing):
            async with asyncio.timeout(self._timeout_s):
                await self._ledger.probe()

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
        """See `Ledger`."""
        with self._watched(self._writing):
            async with asyncio.timeout(self._timeout_s):
                return await self._ledger.charge(
                    account=account,
                    request_id=request_id,
                    item=item,
                    millicredits=millicredits,
                    service=service,
                    model=model,
                    at=at,
                )

    async def usage(
        self, account: str, period: Period, *, excluding: Collection[str] = ()
    ) -> Usage:
        """See `Ledger`."""
        if not self._reading.allows():
            raise LedgerDownError("the ledger is away")
        with self._watched(self._reading):
            async with asyncio.timeout(self._timeout_s):
                return await self._ledger.usage(account, period, excluding=excluding)

    @property
    def _is_failing(self) -> bool:
        return self._reading.is_failing or self._writing.is_failing

    @contextmanager
    def _watched(self, breaker: CircuitBreaker) -> Iterator[None]:
        """Counts a call; an error that is no outage, a defect of ours, passes."""
        was_failing = self._is_failing
        try:
            yield
        except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
            if not is_outage(error):
                raise
            if not was_failing:
                _log.warning("the ledger does not answer", extra={"why": explain(error)})
            breaker.failed()
            self._metrics.store_errors.inc()
            self._metrics.degraded.labels("ledger").set(1)
            raise LedgerDownError(explain(error)) from error
        self._reading.succeeded()
        if breaker is self._writing:  # which a look-up says nothing of
            self._writing.succeeded()
        if was_failing and not self._is_failing:
            _log.info("the ledger answers again")
            self._metrics.degraded.labels("ledger").set(0)
