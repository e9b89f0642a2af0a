"""Goes on where the database of jobs is away for a while.

A run that trains must not end because a job's row cannot be written, so what follows runs asks
again. What clients ask for is refused at once instead, see `JobStore`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.trainer.errors import StoreDownError

_FIRST_DELAY_S = 0.25
_LONGEST_DELAY_S = 10.0

_LOGGER = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Patience:
    """Repeats what the store does not do, until it does or the service stops."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping

    async def __call__(self, action: Callable[[], Awaitable[_Result]]) -> _Result:
        """The result of `action`, which may be begun several times.

        Raises StoreDownError when the service is to stop: what could not be written is found out
        at the next start.
        """
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return await action()
            except StoreDownError as error:
                if self._stopping.is_set():
                    raise
                _LOGGER.warning("jobs cannot be stored now", extra={"why": error.why})
            try:
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()
            except TimeoutError:
                delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
