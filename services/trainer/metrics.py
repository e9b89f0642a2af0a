"""Prometheus metrics of the trainer. Labels never hold an account or a job."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.trainer.job import JobState


class TrainerMetrics:
    """The service's series in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._running = Gauge("trainer_running", "Jobs that run now.", registry=registry)
        self._runs = Counter(
            "trainer_runs",
            "Runs by the state that they left their job in, and why it failed.",
            ("state", "reason"),
            registry=registry,
        )
        self._webhooks = Counter(
            "trainer_webhooks", "Attempts to deliver a webhook.", ("outcome",), registry=registry
        )
        self._uploads = Counter("trainer_datasets", "Datasets taken in.", registry=registry)

    def running(self, count: int) -> None:
        """Say how many jobs run now."""
        self._running.set(count)

    def ended(self, state: JobState, reason: str) -> None:
        """Count a run that ended."""
        self._runs.labels(state, reason).inc()

    def webhook(self, outcome: Literal["delivered", "failed", "given up"]) -> None:
        """Count an attempt to deliver a webhook."""
        self._webhooks.labels(outcome).inc()

    def uploaded(self) -> None:
        """Count a dataset."""
        self._uploads.inc()
