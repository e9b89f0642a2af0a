"""What the supervisor asks of a place where runs happen.

A run belongs to an attempt of a job: `TrainingJob.id` and `TrainingJob.attempt` together name it
for ever, and starting it twice is starting it once.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.trainer.job import FailureReason, JobFailure, TrainingJob


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnd:
    """How a run ended."""

    exit_code: int
    """That of `services.trainer.run`; negative: minus the signal that killed it."""
    failure: JobFailure | None = None
    """Why it did not succeed, where the place of the run knows better than the run itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunWait:
    """Why a run that was started does not go on yet."""

    reason: FailureReason | None
    """What its job fails with if that lasts; None: nothing is wrong, it only takes its time."""
    message: str
    """For the job's owner; never empty."""


class ActiveRun(Protocol):
    """A run that was started."""

    @property
    def waiting(self) -> RunWait | None:
        """Why it does not go on at the moment; None: it does."""
        ...

    async def ended(self) -> RunEnd:
        """Wait for the end; may be cancelled and called again, and makes no progress without."""
        ...

    async def stop(self) -> None:
        """Ask it to write a checkpoint and end; returns at once."""
        ...


class RunBackend(Protocol):
    """Starts runs and finds them again."""

    @property
    def outlives_service(self) -> bool:
        """Whether runs go on while the service is away; those that do not are asked to stop."""
        ...

    @property
    def status_interval_s(self) -> float:
        """How often the run's status file is worth a look, where the run itself says nothing."""
        ...

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Do what goes on all the time, for the length of a block; everything else needs it."""
        ...

    async def start(self, job: TrainingJob, configuration: Path) -> ActiveRun:
        """Start the run of a configuration file, or find the one that was started for this attempt.

        Raises OSError where that cannot be done.
        """
        ...

    async def attach(self, job: TrainingJob) -> ActiveRun | None:
        """The run of a job that was running when the service died; None: none was started, or it
        died too."""
        ...

    async def forget(self, job_id: str) -> None:
        """Remove what is left of all runs of a job that has ended; a no-op where nothing is."""
        ...
