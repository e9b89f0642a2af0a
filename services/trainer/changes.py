"""Tells those who watch a job that it has changed. Used on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class JobChanges:
    """Who watches which job."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}

    def notify(self, job_id: str) -> None:
        """Wake the job's watchers."""
        for event in self._watchers.get(job_id, ()):
            event.set()

    def notify_all(self) -> None:
        """Wake everybody."""
        for job_id in self._watchers:
            self.notify(job_id)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set at each change for the length of a block; clear it before reading
        the job, so that no change is missed."""
        event = asyncio.Event()
        watchers = self._watchers.setdefault(job_id, set())
        watchers.add(event)
        try:
            yield event
        finally:
            watchers.discard(event)
            if not watchers and self._watchers.get(job_id) is watchers:
                del self._watchers[job_id]
