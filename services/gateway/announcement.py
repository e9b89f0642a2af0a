"""Tells callers where their limits stand, with answers for which no limit had to be asked.

The server asks `announce` before the metadata of any answer leaves, refusals included. It adds
nothing for a caller who is not known, or while the tier or the store is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.admission import Admission
from services.gateway.admission.headers import COST_KEY, credits_text
from services.gateway.authentication import find_caller
from services.gateway.tiers import TierCatalog, UnknownTierError
from services.runtime.context import response_metadata


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitAnnouncer:
    """Puts `x-ratelimit-*` and the cost, nothing, on the call that the current task serves."""

    admission: Admission
    tiers: TierCatalog

    async def announce(self) -> None:
        """See `services.runtime.context.Announce`."""
        caller = find_caller()
        if caller is None:
            return
        try:
            tier = self.tiers.get(caller.tier_name)
        except UnknownTierError:
            return
        added = response_metadata().trailing
        added.extend(await self.admission.describe(caller.account, tier))
        added.append((COST_KEY, credits_text(0)))
