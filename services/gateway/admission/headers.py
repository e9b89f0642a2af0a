"""Where an account's limits stand, and how that is told in metadata.

    x-ratelimit-limit-NAME       what there is: the bucket's size, slots, a month's amount
    x-ratelimit-remaining-NAME   what is left of it now
    x-ratelimit-reset-NAME       seconds until it is all there again

for the names `requests`, `concurrency`, `quota` and `credits`; a limit that the tier does not have
is not told. Credits are decimal. Sent with the status of answers, refusals and look-ups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.gateway.admission.store import (
    UNITS_PER_REQUEST,
    Limit,
    Limits,
    Usage,
    month_end_ms,
)

ESTIMATE_KEY = "x-limner-estimated-credits"
LIMIT_PREFIX = "x-ratelimit-"
COST_KEY = "x-limner-charged-credits"

_MILLICREDITS_PER_CREDIT = 1000

_KEYS = {
    limit: tuple(f"{LIMIT_PREFIX}{what}-{limit.value}" for what in ("limit", "remaining", "reset"))
    for limit in Limit
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """One limit of an account, as text for people and machines."""

    limit: str
    remaining: str
    reset_s: int
    """Whole seconds, rounded up."""
    is_near: bool
    """Less than a tenth of it is left."""


def standings(limits: Limits, usage: Usage) -> Mapping[Limit, Standing]:
    """Where every limit that there is stands at `usage.now_ms`."""
    return dict(_standings(limits, usage))


def standing_metadata(told: Mapping[Limit, Standing]) -> list[tuple[str, str]]:
    """The metadata of `told`."""
    return [pair for limit, standing in told.items() for pair in _pairs(limit, standing)]


def credits_text(millicredits: int) -> str:
    """Credits with at most three digits after the point, exactly."""
    whole, rest = divmod(millicredits, _MILLICREDITS_PER_CREDIT)
    return f"{whole}.{rest:03}".rstrip("0").rstrip(".")


def _standings(limits: Limits, usage: Usage) -> Iterator[tuple[Limit, Standing]]:
    units, size = usage.units_of(limits), limits.burst * UNITS_PER_REQUEST
    refill_ms = -(-(size - units) // limits.requests_per_minute)
    remaining = units // UNITS_PER_REQUEST
    yield Limit.REQUESTS, _standing(limits.burst, remaining, _seconds(refill_ms))
    slots = max(0, limits.concurrent_requests - usage.running_count)
    # When a running request will end is not known.
    yield Limit.CONCURRENCY, _standing(limits.concurrent_requests, slots, 0 if slots else 1)
    if limits.monthly_requests is None and limits.monthly_millicredits is None:
        return
    month_s = _seconds(max(0, month_end_ms(usage.period) - usage.now_ms))
    if limits.monthly_requests is not None:
        left = limits.monthly_requests - usage.request_count - usage.running_count
        yield Limit.QUOTA, _standing(limits.monthly_requests, max(0, left), month_s)
    if limits.monthly_millicredits is not None:
        whole = limits.monthly_millicredits + usage.granted_millicredits
        left = max(0, whole - usage.charged_millicredits - usage.held_millicredits)
        yield (
            Limit.CREDITS,
            Standing(
                limit=credits_text(whole),
                remaining=credits_text(left),
                reset_s=month_s,
                is_near=_is_near(whole, left),
            ),
        )


def _standing(limit: int, remaining: int, reset_s: int) -> Standing:
    return Standing(
        limit=str(limit),
        remaining=str(remaining),
        reset_s=reset_s,
        is_near=_is_near(limit, remaining),
    )


def _is_near(limit: int, remaining: int) -> bool:
    return remaining * 10 < limit


def _seconds(ms: int) -> int:
    return -(-ms // 1000)


def _pairs(limit: Limit, standing: Standing) -> Iterator[tuple[str, str]]:
    keys = _KEYS[limit]
    yield keys[0], standing.limit
    yield keys[1], standing.remaining
    yield keys[2], str(standing.reset_s)
