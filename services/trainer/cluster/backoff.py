"""How long to wait before asking the cluster again: longer each time, with chance in it."""

from __future__ import annotations

import asyncio
import logging
import random

from services.trainer.cluster.api import ClusterAwayError

_LOGGER = logging.getLogger(__name__)
_FIRST_S, _LONGEST_S = 0.2, 30.0


class Backoff:
    """The pauses of one series of failures; see "Exponential Backoff And Jitter" (AWS, 2015)."""

    def __init__(self, *, first_s: float = _FIRST_S, longest_s: float = _LONGEST_S) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._ceiling_s = first_s

    def reset(self) -> None:
        """Say that it worked."""
        self._ceiling_s = self._first_s

    async def pause(self, error: ClusterAwayError) -> None:
        """Wait after a failure, at least for as long as the cluster wishes."""
        _LOGGER.warning("the cluster does not do it now", extra={"why": str(error)})
        pause_s = random.uniform(self._ceiling_s / 2, self._ceiling_s)
        self._ceiling_s = min(2 * self._ceiling_s, self._longest_s)
        await asyncio.sleep(max(pause_s, error.retry_after_s or 0.0))
