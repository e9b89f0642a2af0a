"""What a caller is told when a limit stands in the way.

    LimnerError
    ├── LimitReachedError    RESOURCE_EXHAUSTED  RATE_LIMITED|CONCURRENCY_LIMITED, when to retry
    │                                            QUOTA_EXHAUSTED|CREDITS_EXHAUSTED, not to
    └── AlreadyRunningError  ABORTED             DUPLICATE_REQUEST

Raised by `control`, mapped by the runtime's interceptor like every error of the tree in
`services.runtime.errors`. All of it goes into trailers: initial metadata would end a client's
retries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from services.gateway.admission.headers import (
    COST_KEY,
    Standing,
    credits_text,
    standing_metadata,
)
from services.gateway.admission.store import Limit
from services.runtime.errors import RETRY_PUSHBACK_KEY, LimnerError

_CONCURRENCY_RETRY_S = 1.0
_NEVER = "-1"

_REASONS: Mapping[Limit, str] = MappingProxyType(
    {
        Limit.REQUESTS: "RATE_LIMITED",
        Limit.CONCURRENCY: "CONCURRENCY_LIMITED",
        Limit.QUOTA: "QUOTA_EXHAUSTED",
        Limit.CREDITS: "CREDITS_EXHAUSTED",
    }
)
_MESSAGES: Mapping[Limit, str] = MappingProxyType(
    {
        Limit.REQUESTS: "Too many requests for the tier {tier!r}; try again in {retry:.1f} s.",
        Limit.CONCURRENCY: "Too many requests of the account are running for the tier {tier!r}.",
        Limit.QUOTA: "The month's requests of the tier {tier!r} are used up.",
        Limit.CREDITS: "The account's credits of this month do not cover the request.",
    }
)
_MONTHLY = frozenset({Limit.QUOTA, Limit.CREDITS})


class LimitReachedError(LimnerError):
    """A limit of the account was reached; nothing was consumed.

    `standings` says where all limits stand; `retry_after_s` is when the bucket has a token.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    tells_all = True

    def __init__(
        self,
        limit: Limit,
        *,
        account: str,
        tier: str,
        standings: Mapping[Limit, Standing],
        retry_after_s: float | None = None,
    ) -> None:
        self.retry_after_s: float | None = None
        if limit not in _MONTHLY:
            self.retry_after_s = _CONCURRENCY_RETRY_S if retry_after_s is None else retry_after_s
        text = _MESSAGES[limit].format(tier=tier, retry=self.retry_after_s or 0.0)
        standing = standings[limit]
        super().__init__(
            text,
            metadata={
                "limit": limit.value,
                "tier": tier,
                "allowed": standing.limit,
                "remaining": standing.remaining,
                "reset_s": str(standing.reset_s),
            },
        )
        self.limit = limit
        self.reason = _REASONS[limit]
        self._account = account
        self._standings = standings

    def details(self) -> list[Message]:
        """Add `RetryInfo`, or `QuotaFailure` where waiting a while would not help."""
        if self.retry_after_s is None:
            violation = error_details_pb2.QuotaFailure.Violation(
                subject=f"account:{self._account}", description=self.message
            )
            failure = error_details_pb2.QuotaFailure(violations=[violation])
            return [*super().details(), failure]
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(self._retry_after_ms(self.retry_after_s))
        return [*super().details(), retry]

    def trailers(self) -> dict[str, str]:
        """Tell gRPC's own retry policy when to come back, or not to (gRFC A6)."""
        pushback = _NEVER
        if self.retry_after_s is not None:
            pushback = str(self._retry_after_ms(self.retry_after_s))
        standing = dict(standing_metadata(self._standings))
        return {RETRY_PUSHBACK_KEY: pushback, COST_KEY: credits_text(0), **standing}

    @staticmethod
    def _retry_after_ms(retry_after_s: float) -> int:
        return math.ceil(retry_after_s * 1000)


class AlreadyRunningError(LimnerError):
    """The very same request, under the same id, is running; it is not run twice at once."""

    code = grpc.StatusCode.ABORTED
    reason = "DUPLICATE_REQUEST"

    def __init__(self) -> None:
        super().__init__("This request is running already; wait for it, or choose another id.")
