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
from contextlib import suppress
from pathlib import Path

from services.trainer.backends.backend import RunEnd

LOG_FILE = "run.log"
_MODULE = "services.trainer.run"


class SubprocessRun:
    """A process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ended(self) -> RunEnd:
        """Wait for the process."""
        return RunEnd(exit_code=await self._process.wait())

    async def stop(self) -> None:
        """Send SIGTERM, if it still runs."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)


class SubprocessBackend:
    """Starts processes of this interpreter; what they print goes to `run.log` beside the file."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(os.environ if environment is None else environment)

    async def start(self, job_id: str, configuration: Path) -> SubprocessRun:
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
        return SubprocessRun(process)
