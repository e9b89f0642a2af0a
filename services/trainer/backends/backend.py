"""What the supervisor asks of a place where runs happen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnd:
    """How a run's process ended."""

    exit_code: int
    """That of `services.trainer.run`; negative: minus the signal that killed it."""


class ActiveRun(Protocol):
    """A run that was started."""

    async def ended(self) -> RunEnd:
        """Wait for the end; may be cancelled and called again."""
        ...

    async def stop(self) -> None:
        """Ask it to write a checkpoint and end; returns at once."""
        ...


class RunBackend(Protocol):
    """Starts runs."""

    async def start(self, job_id: str, configuration: Path) -> ActiveRun:
        """Start the run of a configuration file. Raises OSError where that cannot be done."""
        ...
