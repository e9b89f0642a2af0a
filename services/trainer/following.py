"""One run while it goes on: what it says becomes the job's progress, what its owner wants reaches
it.

Made by the supervisor for each run. It reads the run's status file and takes reports that come by
other ways; what the end of a run means is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from services.trainer.backends.backend import ActiveRun, RunEnd, RunWait
from services.trainer.changes import JobChanges
from services.trainer.errors import StoreDownError
from services.trainer.job import JobProgress, TrainingJob
from services.trainer.patience import Patience
from services.trainer.run.reporting import STATUS_FILE
from services.trainer.store import JobStore

_POLL_S = 0.5

_LOGGER = logging.getLogger(__name__)


class FollowedRun:
    """A run and the job that it belongs to."""

    def __init__(
        self,
        job: TrainingJob,
        run: ActiveRun,
        *,
        store: JobStore,
        changes: JobChanges,
        stopping: asyncio.Event,
        patience: Patience,
        outlives_service: bool,
        status_interval_s: float,
    ) -> None:
        self.job = job
        self.output = Path(job.tree["output"])
        self._run, self._store, self._changes = run, store, changes
        self._stopping, self._outlives_service = stopping, outlives_service
        self._patience = patience
        self._status_interval_s = status_interval_s
        self._status_due = 0.0
        self._said = self._noted = job.progress
        self.status: Mapping[str, Any] = {}
        """What the run's file said last."""

    async def ended(self) -> RunEnd | None:
        """Follow it to its end; None: the service stops and the run goes on."""
        ending = asyncio.create_task(self._run.ended())
        try:
            goes_on = await self._follow_until(ending)
        finally:
            ending.cancel()  # without effect on what has ended
            await asyncio.wait([ending])
        if goes_on:
            return None
        await self._read()
        await self._patience(lambda: self._note(None))
        return ending.result()

    async def report(self, progress: JobProgress) -> None:
        """Take in what the run says by another way than its file, which can wait then."""
        self._said = progress
        self._status_due = _now() + self._status_interval_s
        await self._note(self._run.waiting)

    async def _follow_until(self, ending: asyncio.Task[RunEnd]) -> bool:
        """Follow it until the task is done; whether it goes on without the service instead."""
        stopped = is_store_down = False
        while not ending.done():
            if self._stopping.is_set() and self._outlives_service:
                return True
            try:
                if not stopped and await self._is_to_stop():
                    stopped = True
                    await self._run.stop()
                await self._look()
                is_store_down = False
            except StoreDownError as error:
                # The run does not need the store; what it says is written when that can be done.
                if not is_store_down:
                    extra = {"job": self.job.id, "why": error.why}
                    _LOGGER.warning("jobs cannot be stored now", extra=extra)
                is_store_down = True
            await asyncio.wait([ending], timeout=_POLL_S)
        return False

    async def _is_to_stop(self) -> bool:
        return self._stopping.is_set() or await self._store.cancel_requested(self.job.id)

    async def _look(self) -> None:
        if _now() >= self._status_due:
            self._status_due = _now() + self._status_interval_s
            await self._read()
        await self._note(self._run.waiting)

    async def _read(self) -> None:
        try:
            status = await asyncio.to_thread(read_status, self.output)
        except OSError as error:
            extra = {"job": self.job.id, "why": str(error)}
            _LOGGER.warning("the status of a run cannot be read now", extra=extra)
            return
        if status:
            self.status = status
            self._said = progress_of(status)

    async def _note(self, waiting: RunWait | None) -> None:
        progress = replace(
            _finite(self._said),
            waiting_reason=waiting.reason if waiting else None,
            waiting_message=waiting.message if waiting else "",
        )
        if progress != self._noted:
            await self._store.progress(self.job.id, self.job.attempt, progress)
            self._noted = progress
            self._changes.notify(self.job.id)


def read_status(output: Path) -> dict[str, Any]:
    """What the run has written about itself; empty where it has not yet, or where a machine that
    lost its power left a file without its contents. Raises OSError."""
    path = output / STATUS_FILE
    try:
        status = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        _LOGGER.warning("a status file is broken", extra={"path": str(path), "why": str(error)})
        return {}
    return status if isinstance(status, dict) else {}


def progress_of(status: Mapping[str, Any]) -> JobProgress:
    """What a status file says, in the service's own words."""
    losses = status.get("losses") or {}
    return JobProgress(
        step=status.get("step", 0),
        step_count=status.get("step_count", 0),
        class_picture_count=status.get("class_picture_count", 0),
        instance_loss=losses.get("instance_loss"),
        prior_loss=losses.get("prior_loss"),
        learning_rate=losses.get("learning_rate", 0.0),
        validation_loss=status.get("validation_loss"),
        eta_s=status.get("eta_s"),
        samples=tuple(status.get("samples", ())),
    )


def _finite(progress: JobProgress) -> JobProgress:
    """Without the losses of a training that diverged: neither JSON nor SQL has a NaN."""
    return replace(
        progress,
        instance_loss=_number(progress.instance_loss),
        prior_loss=_number(progress.prior_loss),
        validation_loss=_number(progress.validation_loss),
    )


def _number(loss: float | None) -> float | None:
    return loss if loss is None or isfinite(loss) else None


def _now() -> float:
    return asyncio.get_running_loop().time()
