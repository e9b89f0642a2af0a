"""Starts the runs of queued jobs, follows them, and writes down how they end.

One task for the process. A job goes back to the queue when its run was stopped for the server's own
reasons; a run that was killed from outside fails its job with KILLED, to be resumed by its owner.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from services.trainer.backends.backend import ActiveRun, RunBackend, RunEnd
from services.trainer.changes import JobChanges
from services.trainer.job import FailureReason, JobFailure, JobProgress, JobState, TrainingJob
from services.trainer.metrics import TrainerMetrics
from services.trainer.run.reporting import STATUS_FILE, write_atomically
from services.trainer.run.violations import EXIT_STOPPED
from services.trainer.store import JobStore

_LOGGER = logging.getLogger(__name__)
_CONFIGURATION_FILE = "configuration.yaml"
_POLL_S = 0.5


class Supervisor:
    """Runs up to `max_running` jobs at a time."""

    def __init__(
        self,
        *,
        store: JobStore,
        backend: RunBackend,
        changes: JobChanges,
        metrics: TrainerMetrics,
        folder: Path,
        max_running: int,
    ) -> None:
        self._store, self._backend, self._changes = store, backend, changes
        self._metrics, self._folder = metrics, folder
        self._max_running = max_running
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._active: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Say that a job was queued or is to be cancelled."""
        self._wake.set()

    def stop(self) -> None:
        """Stop all runs at their next checkpoint and let `run` return."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`; returns when every run has ended."""
        for job_id in await self._store.recover():
            _LOGGER.info("job was left by a service that died", extra={"job": job_id})
        async with asyncio.TaskGroup() as tasks:
            while not self._stopping.is_set():
                self._wake.clear()
                await self._start_queued(tasks)
                await self._wake.wait()

    async def _start_queued(self, tasks: asyncio.TaskGroup) -> None:
        while len(self._active) < self._max_running:
            job = await self._store.claim()
            if job is None:
                return
            task = tasks.create_task(self._follow(job))
            self._active.add(task)
            task.add_done_callback(self._one_ended)
            self._metrics.running(len(self._active))
            self._changes.notify(job.id)

    def _one_ended(self, task: asyncio.Task[None]) -> None:
        self._active.discard(task)
        self._metrics.running(len(self._active))
        self._wake.set()

    async def _follow(self, job: TrainingJob) -> None:
        folder = self._folder / job.id
        output = Path(job.tree["output"])
        try:
            configuration = await asyncio.to_thread(_write_configuration, folder, job.tree)
            run = await self._backend.start(job.id, configuration)
        except OSError as error:
            _LOGGER.error("run cannot be started", extra={"job": job.id, "error": str(error)})
            message = "the run could not be started; the server's log has why"
            unstarted = JobFailure(reason="UNUSABLE_FILES", message=message)
            await self._end(job.id, "failed", unstarted)
            return
        end = await self._watch(job.id, run, output)
        status = await asyncio.to_thread(_read_status, output)
        await self._note(job.id, status)
        state, failure = outcome(
            end,
            status,
            cancelled=await self._store.cancel_requested(job.id),
            stopped=self._stopping.is_set(),
        )
        await self._end(job.id, state, failure)

    async def _watch(self, job_id: str, run: ActiveRun, output: Path) -> RunEnd:
        ending = asyncio.create_task(run.ended())
        try:
            await self._follow_until(ending, job_id, run, output)
        finally:
            ending.cancel()  # without effect on what has ended
        return ending.result()

    async def _follow_until(
        self, ending: asyncio.Task[RunEnd], job_id: str, run: ActiveRun, output: Path
    ) -> None:
        known: Mapping[str, Any] = {}
        stopped = False
        while not ending.done():
            wants = self._stopping.is_set() or await self._store.cancel_requested(job_id)
            if wants and not stopped:
                stopped = True
                await run.stop()
            status = await asyncio.to_thread(_read_status, output)
            if status != known:
                known = status
                await self._note(job_id, status)
            await asyncio.wait([ending], timeout=_POLL_S)

    async def _note(self, job_id: str, status: Mapping[str, Any]) -> None:
        if status:
            await self._store.progress(job_id, progress_of(status))
            self._changes.notify(job_id)

    async def _end(self, job_id: str, state: JobState, failure: JobFailure | None) -> None:
        await self._store.move(job_id, state, failure=failure)
        self._metrics.ended(state, "" if failure is None else failure.reason)
        extra = {"job": job_id, "state": state, "reason": failure and failure.reason}
        _LOGGER.info("job left its run", extra=extra)
        self._changes.notify(job_id)


def outcome(
    end: RunEnd, status: Mapping[str, Any], *, cancelled: bool, stopped: bool
) -> tuple[JobState, JobFailure | None]:
    """What the end of a run means for its job; `stopped`: this service asks all runs to stop."""
    if end.exit_code == 0:
        return "succeeded", None
    if cancelled:
        return "cancelled", None
    # A run that was only starting, or already ending, has not heard the signal as a question.
    if end.exit_code == EXIT_STOPPED or (stopped and end.exit_code == -signal.SIGTERM):
        return "queued", None
    if end.exit_code < 0:
        message = f"the run was killed by signal {-end.exit_code}; it can be resumed"
        return "failed", JobFailure(reason="KILLED", message=message)
    reason = status.get("reason")
    if reason not in get_args(FailureReason):
        reason = "INTERNAL"
    # Other messages speak of the server's files, which are nobody's business.
    told = status.get("message") if reason in ("BAD_INPUT", "OUT_OF_MEMORY") else None
    message = str(told or f"the run ended with exit code {end.exit_code}; the server's log has why")
    return "failed", JobFailure(reason=cast(FailureReason, reason), message=message)


def progress_of(status: Mapping[str, Any]) -> JobProgress:
    """What a status file says, in the service's own words."""
    losses = status.get("losses") or {}
    return JobProgress(
        step=status["step"],
        step_count=status["step_count"],
        class_picture_count=status["class_picture_count"],
        instance_loss=losses.get("instance_loss"),
        prior_loss=losses.get("prior_loss"),
        learning_rate=losses.get("learning_rate", 0.0),
        validation_loss=status["validation_loss"],
        eta_s=status["eta_s"],
    )


def _write_configuration(folder: Path, tree: Mapping[str, Any]) -> Path:
    path = folder / _CONFIGURATION_FILE
    write_atomically(path, yaml.safe_dump(dict(tree), sort_keys=False))
    # What an earlier run of the job said is not what this one will say.
    (Path(tree["output"]) / STATUS_FILE).unlink(missing_ok=True)
    return path


def _read_status(output: Path) -> dict[str, Any]:
    try:
        text = (output / STATUS_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    status: dict[str, Any] = json.loads(text)
    return status
