"""One run as a Job: created, followed to its end, deleted where it is to stop.

Made by the backend. Every step may be done twice, because the one before it may have been done by a
service that died: creating finds what is there, deleting names the uid.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.trainer.backends.backend import RunEnd, RunWait
from services.trainer.cluster.api import (
    AlreadyThereError,
    ClusterApi,
    ClusterAwayError,
    ClusterError,
    ClusterRefusedError,
)
from services.trainer.cluster.backoff import Backoff
from services.trainer.cluster.diagnosis import DISRUPTIONS, PodWait, end_of, wait_of
from services.trainer.cluster.manifests import (
    JOB_NAME_LABEL,
    Manifest,
    job_manifest,
    run_name,
    secret_manifest,
    service_manifest,
    spec_hash,
)
from services.trainer.cluster.settings import KubernetesSettings
from services.trainer.cluster.view import ClusterView
from services.trainer.following import read_status
from services.trainer.job import JobFailure, TrainingJob
from services.trainer.run.violations import EXIT_FAILED, EXIT_REFUSED, EXIT_STOPPED

NO_UID = ""
"""Of a Job that is not there any more."""

_LOGGER = logging.getLogger(__name__)
_LOOK_S = 10.0
"""How often a run is looked at though nothing changed: time itself may have decided."""
_LONGEST_START_S = 600.0
"""How long a start may take beyond what the operator allows for a node and an image: the cluster
itself lets up to ten minutes pass between two tries."""
_STARTING = RunWait(reason=None, message="the cluster starts the run")
_AWAY = RunWait(reason=None, message="the cluster does not answer; it is asked again")


class ClusterRun:
    """See `ActiveRun`. `uid` is that of the Job, where it is there already."""

    def __init__(
        self,
        job: TrainingJob,
        *,
        settings: KubernetesSettings,
        api: ClusterApi,
        view: ClusterView,
        ca: bytes | None,
        uid: str | None = None,
    ) -> None:
        self._job, self._settings, self._api, self._view = job, settings, api, view
        self._name, self._output = run_name(job), Path(job.tree["output"])
        self._ca, self._uid = ca, uid
        self._is_stopping = False
        self._changed: asyncio.Event | None = None
        self._is_deleted = False
        self._given_up: JobFailure | None = None
        self._starts_since: float | None = None
        self._waiting = _STARTING if uid is None else None

    @property
    def waiting(self) -> RunWait | None:
        """Why it does not go on at the moment."""
        return self._waiting

    async def stop(self) -> None:
        """Have the Job deleted; its pods get the time to write their checkpoint first."""
        self._is_stopping = True
        if self._changed is not None:
            self._changed.set()

    async def ended(self) -> RunEnd:
        """Create what is missing and follow it to the end."""
        backoff = Backoff()
        with self._view.changes_of(self._name) as changed:
            self._changed = changed
            while True:
                changed.clear()
                try:
                    end = await self._advance()
                except ClusterAwayError as error:
                    self._waiting = self._waiting and _AWAY
                    await backoff.pause(error)
                    continue
                except (ClusterRefusedError, AlreadyThereError) as error:
                    end = self._refused(error)
                    changed.set()
                if end is not None:
                    return end
                backoff.reset()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await changed.wait()

    async def _advance(self) -> RunEnd | None:
        """Do what is to be done now; the end, if this is it."""
        if self._uid is None:
            self._uid = await (self._find_uid() if self._is_stopping else self._create())
        job = await self._find()
        if job is None:
            return await asyncio.to_thread(self._end_without_job)
        pods = self._view.pods(self._name)
        end = end_of(job, pods)
        if end is not None and end.exit_code:
            # Why, its pods know, and their watch may be behind that of the Jobs.
            pods, _ = await self._api.list_objects("Pod", f"{JOB_NAME_LABEL}={self._name}")
            end = end_of(job, pods)
        if end is not None:
            return end
        if not self._is_to_go:
            await self._see_to(self._uid, wait_of(job, pods))
        if self._is_to_go and not self._is_deleted:
            with suppress(AlreadyThereError):  # the name has another Job: this one is gone
                await self._api.delete_job(self._name, uid=self._uid)
            self._is_deleted = True
        return None

    @property
    def _is_to_go(self) -> bool:
        return self._is_stopping or self._given_up is not None

    async def _see_to(self, uid: str, wait: PodWait | None) -> None:
        """Say what the run waits for, see that it has what it needs, give up where it waited long
        enough."""
        self._waiting = self._told(wait)
        is_late = self._is_late_start(wait)
        if wait is None:
            return
        await self._create_companions(uid)
        if is_late:
            # No pod may be made (quota, policy), or no volume be mounted; only events say so.
            message = "the cluster did not start the run; its operator can tell why"
            self._given_up = JobFailure(reason="CLUSTER_REFUSED", message=message)
        elif wait.wait.reason is not None and self._is_overdue(wait):
            self._given_up = JobFailure(reason=wait.wait.reason, message=wait.wait.message)

    async def _find_uid(self) -> str:
        """The uid of a Job that may have been created by a call that was not answered."""
        found = await self._api.find_job(self._name)
        return NO_UID if found is None else str(found["metadata"]["uid"])

    async def _create(self) -> str:
        """Create the Job, or find the one that was created for this attempt; its uid."""
        manifest = job_manifest(self._settings, self._job)
        try:
            job = await self._api.create(manifest)
        except AlreadyThereError:
            found = await self._api.find_job(self._name)
            if found is None:
                raise ClusterAwayError("a Job of the same name is only just going") from None
            if spec_hash(found) != spec_hash(manifest):
                raise
            job = found
        uid: str = job["metadata"]["uid"]
        return uid

    async def _create_companions(self, uid: str) -> None:
        """Create what the pods need, unless it is there. Again and again while they have not begun:
        what an earlier Job of the same name left is removed by the cluster at some time."""
        companions = [secret_manifest(self._settings, self._job, owner_uid=uid, ca=self._ca)]
        if self._settings.kubernetes_node_count > 1:
            companions.append(service_manifest(self._settings, self._job, owner_uid=uid))
        for manifest in companions:
            with suppress(AlreadyThereError):
                await self._api.create(manifest)

    async def _find(self) -> Manifest | None:
        """The Job; that it is gone is believed only if the cluster itself says so."""
        job = self._view.job(self._name)
        if not self._is_own(job):
            job = await self._api.find_job(self._name)
        return job if self._is_own(job) else None

    def _is_own(self, job: Manifest | None) -> bool:
        return job is not None and job["metadata"]["uid"] == self._uid

    def _told(self, wait: PodWait | None) -> RunWait | None:
        """What to say of a wait. What disrupted the run stays said until it goes on, though the pod
        that showed it is gone."""
        if wait is None:
            return None
        began = self._waiting
        if wait.wait.reason is None and began is not None and began.reason in DISRUPTIONS:
            return began
        return wait.wait

    def _is_overdue(self, wait: PodWait) -> bool:
        patience = timedelta(seconds=self._settings.kubernetes_pending_s)
        return wait.since is not None and datetime.now(UTC) - wait.since > patience

    def _is_late_start(self, wait: PodWait | None) -> bool:
        """Whether the run has only been starting for too long, as seen from here."""
        now = asyncio.get_running_loop().time()
        if wait is None or not wait.is_start:
            self._starts_since = None
            return False
        self._starts_since = self._starts_since or now
        allowed_s = self._settings.kubernetes_pending_s + _LONGEST_START_S
        return now - self._starts_since > allowed_s

    def _end_without_job(self) -> RunEnd:
        """What became of a run whose Job is gone: its own status file knows.

        Raises ClusterAwayError where the volume that it is on cannot be read now.
        """
        try:
            status = read_status(self._output)
        except OSError as error:
            raise ClusterAwayError(f"the run's volume: {error}") from error
        state = status.get("state")
        if state == "succeeded":
            return RunEnd(exit_code=0)
        if self._given_up is not None:
            return RunEnd(exit_code=EXIT_FAILED, failure=self._given_up)
        if self._is_stopping:
            return RunEnd(exit_code=EXIT_STOPPED)
        if state in ("failed", "refused"):
            return RunEnd(exit_code=EXIT_FAILED if state == "failed" else EXIT_REFUSED)
        _LOGGER.error("the Job of a run is gone", extra={"job": self._job.id, "run": self._name})
        message = "the run is gone and left no word of how it ended; it can be resumed"
        return RunEnd(exit_code=EXIT_FAILED, failure=JobFailure(reason="LOST", message=message))

    def _refused(self, error: ClusterError) -> RunEnd | None:
        """What to make of a refusal; None: a Job is there and has to go first."""
        extra = {"job": self._job.id, "run": self._name, "why": str(error)}
        _LOGGER.error("the cluster refuses a run", extra=extra)
        was_to_go = self._is_to_go
        message = "the cluster refused the run; the server's log has why"
        self._given_up = JobFailure(reason="CLUSTER_REFUSED", message=message)
        if self._uid is None or was_to_go:
            return RunEnd(exit_code=EXIT_FAILED, failure=self._given_up)
        return None
