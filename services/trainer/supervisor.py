"""Starts the runs of queued jobs, follows them, and writes down how they end.

One task for the process. A job goes back to the queue when its run was stopped for the server's own
reasons; a run that was killed from outside fails its job with KILLED, to be resumed by its owner.
Runs of a backend that outlives the service go on while it is away, and are found again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from services.storage.catalog import Catalog
from services.trainer.backends.backend import ActiveRun, RunBackend, RunEnd
from services.trainer.changes import JobChanges
from services.trainer.errors import StoreDownError
from services.trainer.following import FollowedRun
from services.trainer.job import FailureReason, JobFailure, JobProgress, JobState, TrainingJob
from services.trainer.metrics import TrainerMetrics
from services.trainer.outcome import publish
from services.trainer.patience import Patience
from services.trainer.run.reporting import STATUS_FILE, write_atomically
from services.trainer.run.violations import EXIT_DISK_FULL, EXIT_STOPPED
from services.trainer.store import JobStore

_LOGGER = logging.getLogger(__name__)
_CONFIGURATION_FILE = "configuration.yaml"


class Supervisor:
    """Runs up to `max_running` jobs at a time."""

    def __init__(
        self,
        *,
        store: JobStore,
        backend: RunBackend,
        changes: JobChanges,
        metrics: TrainerMetrics,
        catalog: Catalog,
        folder: Path,
        max_running: int,
    ) -> None:
        self._store, self._backend, self._changes = store, backend, changes
        self._metrics, self._catalog, self._folder = metrics, catalog, folder
        self._max_running = max_running
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._patience = Patience(self._stopping)
        self._active: dict[str, asyncio.Task[None]] = {}
        self._followed: dict[str, FollowedRun] = {}

    def wake(self) -> None:
        """Say that a job was queued or is to be cancelled."""
        self._wake.set()

    def stop(self) -> None:
        """Let `run` return: stop all runs at their next checkpoint, or leave them to go on."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`; returns when no run is followed any more."""
        async with self._backend.opened(), asyncio.TaskGroup() as tasks:
            while not self._stopping.is_set():
                self._wake.clear()
                with self._left_for_later():
                    await self._patience(lambda: self._look_for_work(tasks))
                await self._wake.wait()

    async def report(self, job_id: str, attempt: int, progress: JobProgress) -> bool:
        """Take in what a run says of itself; whether it is one that is followed here."""
        followed = self._followed.get(job_id)
        if followed is None or followed.job.attempt != attempt:
            return False
        await followed.report(progress)
        return True

    async def forget(self, job_id: str) -> None:
        """Remove what the backend has left of the runs of a job that has ended."""
        await self._backend.forget(job_id)

    async def _look_for_work(self, tasks: asyncio.TaskGroup) -> None:
        """Follow what runs and is not followed, and start what waits; may be begun again."""
        await self._take_up(tasks)
        await self._start_queued(tasks)

    async def _take_up(self, tasks: asyncio.TaskGroup) -> None:
        """Find the runs that a service that died was following, and claims that it lost."""
        followed = set(self._active)  # of these the list may be older than their end
        for job in await self._store.running_jobs():
            if job.id in followed:
                continue
            run = await self._backend.attach(job)
            _LOGGER.info("job was left running", extra={"job": job.id, "goes_on": run is not None})
            if run is not None:
                self._begin(tasks, job, run)
            else:
                state: JobState = "cancelled" if job.cancel_requested else "queued"
                await self._store.move(job.id, job.attempt, state)
                self._changes.notify(job.id)

    async def _start_queued(self, tasks: asyncio.TaskGroup) -> None:
        while len(self._active) < self._max_running:
            # Not one whose last attempt is still being written down.
            job = await self._store.claim(excluded=tuple(self._active))
            if job is None:
                return
            self._begin(tasks, job, None)
            self._changes.notify(job.id)

    def _begin(self, tasks: asyncio.TaskGroup, job: TrainingJob, run: ActiveRun | None) -> None:
        task = tasks.create_task(self._see_through(job, run))
        self._active[job.id] = task
        task.add_done_callback(lambda _: self._one_ended(job.id))
        self._metrics.running(len(self._active))

    def _one_ended(self, job_id: str) -> None:
        del self._active[job_id]
        self._metrics.running(len(self._active))
        self._wake.set()

    @contextmanager
    def _left_for_later(self) -> Iterator[None]:
        """What cannot be written while the service stops is found at the next start; the other runs
        are still to write their checkpoints."""
        try:
            yield
        except StoreDownError as error:
            _LOGGER.warning("jobs are stored at the next start", extra={"why": error.why})

    async def _see_through(self, job: TrainingJob, run: ActiveRun | None) -> None:
        with self._left_for_later():
            await self._follow(job, run)

    async def _follow(self, job: TrainingJob, run: ActiveRun | None) -> None:
        run = run or await self._start(job)
        if run is None:
            return
        followed = FollowedRun(
            job,
            run,
            store=self._store,
            changes=self._changes,
            stopping=self._stopping,
            patience=self._patience,
            outlives_service=self._backend.outlives_service,
            status_interval_s=self._backend.status_interval_s,
        )
        self._followed[job.id] = followed
        try:
            end = await followed.ended()
        finally:
            del self._followed[job.id]
        if end is None:
            _LOGGER.info("run goes on without the service", extra={"job": job.id})
            return
        state, failure = outcome(
            end,
            followed.status,
            cancelled=await self._patience(lambda: self._store.cancel_requested(job.id)),
            stopped=self._stopping.is_set(),
        )
        if state == "succeeded":
            failure = await self._publish(job)
            state = "succeeded" if failure is None else "failed"
        await self._end(job, state, failure)

    async def _publish(self, job: TrainingJob) -> JobFailure | None:
        """Take the outcome into the catalogue; why that failed, if it did."""
        try:
            entry = await asyncio.to_thread(publish, self._catalog, job)
        except (OSError, ValueError, KeyError) as error:
            _LOGGER.error("outcome is not usable", extra={"job": job.id, "error": str(error)})
            message = "what the run left could not be kept; the server's log has why"
            return JobFailure(reason="UNUSABLE_FILES", message=message)
        _LOGGER.info("outcome is in the catalogue", extra={"job": job.id, "model": entry.name})
        return None

    async def _start(self, job: TrainingJob) -> ActiveRun | None:
        """Start a run; where that cannot be done its job has failed."""
        folder = self._folder / job.id
        try:
            configuration = await asyncio.to_thread(_write_configuration, folder, job.tree)
            return await self._backend.start(job, configuration)
        except OSError as error:
            _LOGGER.error("run cannot be started", extra={"job": job.id, "error": str(error)})
        message = "the run could not be started; the server's log has why"
        await self._end(job, "failed", JobFailure(reason="UNUSABLE_FILES", message=message))
        return None

    async def _end(self, job: TrainingJob, state: JobState, failure: JobFailure | None) -> None:
        await self._patience(lambda: self._store.move(job.id, job.attempt, state, failure=failure))
        self._metrics.ended(state, "" if failure is None else failure.reason)
        extra = {"job": job.id, "state": state, "reason": failure and failure.reason}
        _LOGGER.info("job left its run", extra=extra)
        self._changes.notify(job.id)


def outcome(
    end: RunEnd, status: Mapping[str, Any], *, cancelled: bool, stopped: bool
) -> tuple[JobState, JobFailure | None]:
    """What the end of a run means for its job; `stopped`: this service asks all runs to stop."""
    if end.exit_code == 0:
        return "succeeded", None
    if cancelled:
        return "cancelled", None
    if end.failure is not None:
        return "failed", end.failure
    # A run that was only starting, or already ending, has not heard the signal as a question.
    if end.exit_code == EXIT_STOPPED or (stopped and end.exit_code == -signal.SIGTERM):
        return "queued", None
    if end.exit_code < 0:
        message = f"the run was killed by signal {-end.exit_code}; it can be resumed"
        return "failed", JobFailure(reason="KILLED", message=message)
    if end.exit_code == EXIT_DISK_FULL:
        message = "the disk is full; the job can be resumed where it was once there is room"
        return "failed", JobFailure(reason="UNUSABLE_FILES", message=message)
    reason = status.get("reason")
    if reason not in get_args(FailureReason):
        reason = "INTERNAL"
    # Other messages speak of the server's files, which are nobody's business.
    told = status.get("message") if reason in ("BAD_INPUT", "OUT_OF_MEMORY") else None
    message = str(told or f"the run ended with exit code {end.exit_code}; the server's log has why")
    return "failed", JobFailure(reason=cast(FailureReason, reason), message=message)


def _write_configuration(folder: Path, tree: Mapping[str, Any]) -> Path:
    path = folder / _CONFIGURATION_FILE
    write_atomically(path, yaml.safe_dump(dict(tree), sort_keys=False))
    # What an earlier run of the job said is not what this one will say.
    (Path(tree["output"]) / STATUS_FILE).unlink(missing_ok=True)
    return path
