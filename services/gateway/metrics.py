"""The gateway's own Prometheus metrics; those of its calls come from the runtime.

Made once per process by `Gateway` and handed to whoever counts. No label ever holds a key, an
account or a prompt.
"""

from __future__ import annotations

import functools
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

NO_TIER = ""
"""Label of decisions about which no tier has a say: a rejected key, or no tiers at all."""


Decided = Literal[
    "allowed", "rate", "concurrency", "quota", "auth", "degraded", "shadow", "duplicate"
]
CreditEvent = Literal["reserved", "settled", "refunded", "expired"]

_MILLICREDITS_PER_CREDIT = 1000


class GatewayMetrics:
    """Counters of admissions and open streams, registered in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.admissions = Counter(
            "gateway_admissions_total",
            "Decisions on requests. `auth`: the key was rejected, before a service was looked at. "
            "`quota`: of requests or credits. `shadow`: let in though a limit was reached. "
            "`degraded`: let in or refused without the store or the ledger.",
            ["tier", "service", "decision"],
            registry=registry,
        )
        self.admission_seconds = Histogram(
            "gateway_admission_seconds",
            "Time an admission took.",
            buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0),
            registry=registry,
        )
        self.inflight_count = 0
        """Streams being relayed now, counted by the relays."""
        Gauge(
            "gateway_inflight", "Streams being relayed from a backend.", registry=registry
        ).set_function(lambda: self.inflight_count)
        self.file_errors = Counter(
            "gateway_file_errors_total",
            "Versions of the file of tiers or prices that were refused; the last good one stayed.",
            ["file"],
            registry=registry,
        )
        self.store_errors = Counter(
            "gateway_store_errors_total",
            "Calls of the database or of the admission store that failed.",
            registry=registry,
        )
        self.degraded = Gauge(
            "gateway_degraded",
            "1 while the admission store or the ledger does not answer.",
            ["dependency"],
            registry=registry,
        )
        for dependency in ("store", "ledger"):
            self.degraded.labels(dependency).set(0)
        self.credits = Counter(
            "gateway_credits_total",
            "Credits reserved at admission, and what became of them.",
            ["event"],
            registry=registry,
        )
        self.leases_expired = Counter(
            "gateway_leases_expired_total",
            "Requests whose gateway vanished before they ended.",
            registry=registry,
        )
        self.near_limit = Counter(
            "gateway_near_limit_total",
            "Requests that were let in and left less than a tenth of a limit.",
            ["tier", "limit"],
            registry=registry,
        )
        self.balance_corrections = Counter(
            "gateway_balance_corrections_total",
            "Balances in the admission store that differed from the ledger.",
            registry=registry,
        )

        # Looked up once: a look-up costs ten times what counting costs.
        self._admissions_of = functools.cache(self.admissions.labels)
        self._credits_of = functools.cache(self.credits.labels)

    def count_admission(self, tier: str, service: str, decision: Decided) -> None:
        """Counts a decision."""
        self._admissions_of(tier, service, decision).inc()

    def count_credits(self, event: CreditEvent, millicredits: int) -> None:
        """Counts an amount."""
        self._credits_of(event).inc(millicredits / _MILLICREDITS_PER_CREDIT)
