"""The gateway's own Prometheus metrics; those of its calls come from the runtime.

Made once per process by `Gateway` and handed to whoever counts. No label ever holds a key, an
account or a prompt.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

NO_TIER = ""
"""Label of decisions about which no tier has a say: a rejected key, or no tiers at all."""


class GatewayMetrics:
    """Counters of admissions and open streams, registered in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.admissions = Counter(
            "gateway_admissions_total",
            "Decisions on requests. `auth`: the key was rejected, before a service was looked at.",
            ["tier", "service", "decision"],
            registry=registry,
        )
        self.admission_seconds = Histogram(
            "gateway_admission_seconds",
            "Time an admission took.",
            buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0),
            registry=registry,
        )
        self.inflight = Gauge(
            "gateway_inflight", "Streams being relayed from a backend.", registry=registry
        )
        self.store_errors = Counter(
            "gateway_store_errors_total",
            "Look-ups that failed because the database did.",
            registry=registry,
        )
