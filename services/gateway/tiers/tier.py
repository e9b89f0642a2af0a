"""What a tier is, and the built-in ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from services.gateway.model_pattern import ANY_MODEL, matches_model

DEFAULT_TIER = "free"
"""Of accounts that are created without naming one."""
UNLIMITED_TIER = "unlimited"
"""No limit that a request could meet: for a suite on one machine, and for accounts from before
there were tiers."""

_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """The promises and the limits of a tier. Amounts are in millicredits, None is no limit."""

    name: str
    requests_per_minute: int
    """Refill of the token bucket."""
    burst: int
    """Size of the token bucket, in requests."""
    concurrent_requests: int
    monthly_requests: int | None
    monthly_millicredits: int | None
    models: tuple[str, ...]
    """Shell patterns of model names; `*` is any."""
    max_pixels: int
    """Width times height of one picture."""
    max_step_count: int
    max_sample_count: int
    max_upscaled_megapixels: int
    """Millions of pixels of one upscaled picture."""
    priority: int
    """Travels to the backend, where one more is twice the share of a busy device, within ±6."""
    queue_share: float
    """Largest part of a backend's queue that the tier may fill, above 0 and up to 1."""
    shadow: bool = False
    """Limits are measured and logged, not enforced."""

    def allows_model(self, model: str) -> bool:
        """Whether a pattern of the tier matches the model's name; of a trained one, its base's."""
        return any(matches_model(pattern, model) for pattern in self.models)


_BUILT_IN = (
    Tier(
        name=DEFAULT_TIER,
        requests_per_minute=10,
        burst=5,
        concurrent_requests=1,
        monthly_requests=1_000,
        monthly_millicredits=500_000,
        models=(ANY_MODEL,),
        max_pixels=1024 * 1024,
        max_step_count=50,
        max_sample_count=4,
        max_upscaled_megapixels=16,
        priority=0,
        queue_share=0.25,
    ),
    Tier(
        name="pro",
        requests_per_minute=60,
        burst=20,
        concurrent_requests=4,
        monthly_requests=50_000,
        monthly_millicredits=25_000_000,
        models=(ANY_MODEL,),
        max_pixels=2048 * 2048,
        max_step_count=100,
        max_sample_count=8,
        max_upscaled_megapixels=64,
        priority=1,
        queue_share=0.5,
    ),
    Tier(
        name="enterprise",
        requests_per_minute=600,
        burst=200,
        concurrent_requests=32,
        monthly_requests=None,
        monthly_millicredits=None,
        models=(ANY_MODEL,),
        max_pixels=4096 * 4096,
        max_step_count=500,
        max_sample_count=16,
        max_upscaled_megapixels=256,
        priority=2,
        queue_share=1.0,
    ),
    Tier(
        name=UNLIMITED_TIER,
        requests_per_minute=_NO_LIMIT,
        burst=_NO_LIMIT,
        concurrent_requests=_NO_LIMIT,
        monthly_requests=None,
        monthly_millicredits=None,
        models=(ANY_MODEL,),
        max_pixels=_NO_LIMIT,
        max_step_count=_NO_LIMIT,
        max_sample_count=_NO_LIMIT,
        max_upscaled_megapixels=_NO_LIMIT,
        priority=0,
        queue_share=1.0,
    ),
)
BUILT_IN_TIERS: Mapping[str, Tier] = MappingProxyType({tier.name: tier for tier in _BUILT_IN})
