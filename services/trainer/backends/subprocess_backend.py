"""Runs as processes of this machine, which stop when this process is gone.

The run holds one end of a pipe and this process the other, without ever writing: the end of the
pipe tells the run that its service has died, however it died. It then writes a checkpoint and ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from pathlib import Path

from services.trainer.backends.backend import RunEnd, RunWait
from services.trainer.job import TrainingJob

LOG_FILE = "run.log"
_MODULE = "services.trainer.run"


class SubprocessRun:
    """A process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def waiting(self) -> RunWait | None:
        """None: a process runs at once."""
        return None

    async def ended(self) -> RunEnd:
        """Wait for the process."""
        return RunEnd(exit_code=await self._process.wait())

    async def stop(self) -> None:
        """Send SIGTERM, if it still runs."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)


class SubprocessBackend:
    """Starts processes of this interpreter; what they print goes to `run.log` beside the file."""

    def __init__(self, environment: Mapping[str, str] | None = None, *, niceness: int = 0) -> None:
        self._environment = dict(os.environ if environment is None else environment)
        self._niceness = niceness

    @property
    def outlives_service(self) -> bool:
        """A process that holds the machine of a service that is gone would be in the way."""
        return False

    @property
    def status_interval_s(self) -> float:
        """Short: the file is local, and nothing else tells of the run."""
        return 0.5

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Nothing goes on beside the processes."""
        return nullcontext()

    async def attach(self, job: TrainingJob) -> None:
        """None: processes end with their service."""

    async def forget(self, job_id: str) -> None:
        """A process leaves nothing but its files."""

    async def start(self, job: TrainingJob, configuration: Path) -> SubprocessRun:
        """Start `python -m services.trainer.run`. Raises OSError."""
        log = await asyncio.to_thread((configuration.parent / LOG_FILE).open, "ab")
        with log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", _MODULE, str(configuration), "--end-with-parent"),
                stdin=PIPE,
                stdout=log,
                stderr=STDOUT,
                env=self._environment,
                # A Ctrl-C at the terminal is for the service, which then stops its runs.
                start_new_session=True,
            )
        if self._niceness:
            # Now, while it has one thread: those that it starts later inherit it.
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, process.pid, self._niceness)
        return SubprocessRun(process)
