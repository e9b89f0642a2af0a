"""A service as a child process: its environment, its log file, its end.

Used by `services.local.suite`. It knows nothing of what the service does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TAIL_LINE_COUNT = 12
_TAIL_SIZE_BYTES = 16 * 2**10
_MAX_LINE_LENGTH = 1000
_CALM_LEVELS = frozenset({"DEBUG", "INFO"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSpec:
    """How a service is started and how it is asked for its health."""

    name: str
    """Name for people; also the name of the log file."""
    module: str
    """What `python -m` runs."""
    address: str
    """Where it listens, `host:port`."""
    health_service: str
    """The gRPC service whose health tells that it is ready."""
    environment: Mapping[str, str]
    """Variables on top of this process's own."""
    grace_s: float
    """How long it may drain after SIGTERM."""


class ServiceProcess:
    """A started service."""

    def __init__(self, spec: ServiceSpec, process: asyncio.subprocess.Process, log: Path) -> None:
        self.spec = spec
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end and return the exit code."""
        return await self._process.wait()

    def kill(self) -> None:
        """End it at once unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> int:
        """Ask it to drain, wait, kill it when its grace is over; return the exit code."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(self.spec.grace_s + 10):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()

    def log_tail(self) -> str:
        """Return the last lines of its log, JSON ones in short and only from warnings on."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_SIZE_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        told = [short for line in lines if (short := _shorten(line))]
        return "\n".join(told[-_TAIL_LINE_COUNT:])


async def start_process(spec: ServiceSpec, logs_dir: Path) -> ServiceProcess:
    """Start a service with its output in `logs_dir`; the log of the run before is kept as `.log.1`.

    The child gets a process group of its own, so that Ctrl-C reaches this process alone, which
    then stops the services in order.
    """
    log = logs_dir / f"{spec.name}.log"
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.local.child", spec.module),
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, **spec.environment},
            process_group=0,
        )
    return ServiceProcess(spec, process, log)


def _shorten(line: str) -> str:
    """Return a log line as people want to read it; what is not a JSON log stays as it is.

    A JSON log that tells of no trouble becomes empty.
    """
    try:
        record = json.loads(line)
    except ValueError:
        return line[:_MAX_LINE_LENGTH]
    if not isinstance(record, dict) or "message" not in record:
        return line[:_MAX_LINE_LENGTH]
    if record.get("level") in _CALM_LEVELS:
        return ""
    text = f"{record.get('level', '')} {record['message']}".strip()
    trace = str(record.get("exc_info") or "")
    return f"{text}\n{trace}" if trace else text[:_MAX_LINE_LENGTH]
