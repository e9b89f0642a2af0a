"""Tiers: what an account may use, by the name of its tier.

The built-in tiers always exist; a YAML file adds tiers and replaces built-in ones of the same name.
Asked by authentication, admission and the admin service. Nothing here knows an account or enforces
a limit.
"""

from services.gateway.tiers.catalog import TierCatalog, UnknownTierError
from services.gateway.tiers.tier import BUILT_IN_TIERS, DEFAULT_TIER, UNLIMITED_TIER, Tier

__all__ = [
    "BUILT_IN_TIERS",
    "DEFAULT_TIER",
    "UNLIMITED_TIER",
    "Tier",
    "TierCatalog",
    "UnknownTierError",
]
