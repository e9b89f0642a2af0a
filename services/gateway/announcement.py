"""Tells callers where their limits stand, with answers for which no limit had to be asked."""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.admission import Admission
from services.gateway.authentication import current_caller
from services.gateway.tiers import TierCatalog, UnknownTierError
from services.runtime.context import response_metadata


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitAnnouncer:
    """Puts `x-ratelimit-*` on the call that the current task serves."""

    admission: Admission
    tiers: TierCatalog

    async def announce(self) -> None:
        """Adds what is known; nothing while the tier or the store is not."""
        caller = current_caller()
        try:
            tier = self.tiers.get(caller.tier_name)
        except UnknownTierError:
            return
        pairs = await self.admission.describe(caller.account, tier)
        response_metadata().initial.extend(pairs)
