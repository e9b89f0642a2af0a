"""Runs as Kubernetes Jobs: started by name, followed by watches, found again after a restart.

A run is a Job whose name says which attempt of which job it is, so that nothing but the cluster and
the run's own files has to be remembered. Runs go on while the service is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.trainer.cluster.api import ClusterApi, ClusterError, open_api
from services.trainer.cluster.cluster_run import NO_UID, ClusterRun
from services.trainer.cluster.manifests import job_selector, run_name, selector
from services.trainer.cluster.settings import KubernetesSettings
from services.trainer.cluster.view import ClusterView
from services.trainer.following import read_status
from services.trainer.job import TrainingJob
from services.trainer.run.reporting import write_atomically

_LOGGER = logging.getLogger(__name__)
_STATUS_INTERVAL_S = 15.0
_ATTEMPT_FILE = ".attempt"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cluster:
    api: ClusterApi
    view: ClusterView
    ca: bytes | None


class KubernetesBackend:
    """See `RunBackend`."""

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings
        self._cluster: _Cluster | None = None

    @property
    def outlives_service(self) -> bool:
        """Jobs go on."""
        return True

    @property
    def status_interval_s(self) -> float:
        """Pods report; their file on the volume is looked at in case they cannot."""
        return _STATUS_INTERVAL_S

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Watch the cluster for the length of a block, which begins once it has answered.

        Raises OSError where there is no way to it, `ClusterRefusedError` where it does not let this
        process look.
        """
        settings = self._settings
        assert settings.kubernetes_namespace is not None, "checked with the settings"
        ca_file = settings.kubernetes_reports_ca
        ca = None if ca_file is None else await asyncio.to_thread(ca_file.read_bytes)
        opening = open_api(settings.kubernetes_namespace, settings.kubernetes_config)
        async with opening as api, asyncio.TaskGroup() as tasks:
            view = ClusterView(api, selector(settings), resync_s=settings.kubernetes_resync_s)
            following = tasks.create_task(view.follow())
            await view.listed()
            self._cluster = _Cluster(api=api, view=view, ca=ca)
            try:
                yield
            finally:
                self._cluster = None
                following.cancel()

    async def start(self, job: TrainingJob, configuration: Path) -> ClusterRun:
        """A run that becomes a Job as soon as the cluster takes it. Raises OSError.

        Its pods get their configuration from a Secret, not from the file.
        """
        marker = Path(job.tree["output"]) / _ATTEMPT_FILE
        await asyncio.to_thread(write_atomically, marker, str(job.attempt))
        return self._run(job, uid=None)

    async def attach(self, job: TrainingJob) -> ClusterRun | None:
        """The run of a job, from its Job or from what it wrote before that was removed.

        None where nothing was started for this attempt.
        """
        found = self._open.view.job(run_name(job))
        if found is not None:
            return self._run(job, uid=found["metadata"]["uid"])
        was_here = await asyncio.to_thread(_has_begun, job)
        return self._run(job, uid=NO_UID) if was_here else None

    async def forget(self, job_id: str) -> None:
        """Delete the Jobs of a job and, with them, their Secrets. Where that fails now the cluster
        does so by itself a day after their end."""
        api = self._open.api
        try:
            jobs, _ = await api.list_objects("Job", job_selector(self._settings, job_id))
            for job in jobs:
                await api.delete_job(job["metadata"]["name"], uid=job["metadata"]["uid"])
        except ClusterError as error:
            extra = {"job": job_id, "why": str(error)}
            _LOGGER.warning("the Jobs of a deleted job stay for a day", extra=extra)

    @property
    def _open(self) -> _Cluster:
        assert self._cluster is not None, "the backend has not been opened"
        return self._cluster

    def _run(self, job: TrainingJob, *, uid: str | None) -> ClusterRun:
        cluster = self._open
        return ClusterRun(
            job,
            settings=self._settings,
            api=cluster.api,
            view=cluster.view,
            ca=cluster.ca,
            uid=uid,
        )


def _has_begun(job: TrainingJob) -> bool:
    """Whether a run of this very attempt has written anything."""
    output = Path(job.tree["output"])
    try:
        attempt = (output / _ATTEMPT_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return attempt == str(job.attempt) and bool(read_status(output))
