"""Jobs and pods of this service as last seen, and who waits for a change of one.

Shared by all runs of a backend: two watches, however many runs there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from services.trainer.cluster.api import ClusterApi
from services.trainer.cluster.manifests import JOB_NAME_LABEL, Manifest
from services.trainer.cluster.watching import Watched


class ClusterView:
    """What `follow` keeps up to date."""

    def __init__(self, api: ClusterApi, selector: str, *, resync_s: float) -> None:
        self._waiting: dict[str, asyncio.Event] = {}
        self._jobs = Watched(api, "Job", selector, resync_s=resync_s, changed=self._job_changed)
        self._pods = Watched(api, "Pod", selector, resync_s=resync_s, changed=self._pod_changed)

    async def follow(self) -> None:
        """Keep up until cancelled. Raises `ClusterRefusedError` where it may not look."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._jobs.follow())
            tasks.create_task(self._pods.follow())

    async def listed(self) -> None:
        """Wait until there is something to go by."""
        await self._jobs.listed.wait()
        await self._pods.listed.wait()

    def job(self, name: str) -> Manifest | None:
        """A Job."""
        return self._jobs.objects.get(name)

    def pods(self, job_name: str) -> list[Manifest]:
        """The pods of a Job, in no particular order."""
        return [pod for pod in self._pods.objects.values() if _job_name(pod) == job_name]

    @contextmanager
    def changes_of(self, job_name: str) -> Iterator[asyncio.Event]:
        """An event that is set when a Job or one of its pods changes; for one waiter a Job."""
        event = self._waiting[job_name] = asyncio.Event()
        try:
            yield event
        finally:
            del self._waiting[job_name]

    def _job_changed(self, job: Manifest) -> None:
        self._wake(job["metadata"]["name"])

    def _pod_changed(self, pod: Manifest) -> None:
        self._wake(_job_name(pod))

    def _wake(self, job_name: str) -> None:
        if (event := self._waiting.get(job_name)) is not None:
            event.set()


def _job_name(pod: Manifest) -> str:
    name: str = pod["metadata"]["labels"].get(JOB_NAME_LABEL, "")
    return name
