"""Notices that the file of a SQLite database was removed or replaced beneath its connections.

Used by `services.storage.database`. SQLite would go on writing into the file that no longer has a
name, and what it wrote would be lost with the process.
"""

from __future__ import annotations

import errno
from pathlib import Path

from sqlalchemy import Engine, event


class SqliteFile:
    """The file at `path`; an engine that it guards uses no other in its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, int] | None = None

    def guard(self, engine: Engine) -> None:
        """Let connections of `engine` raise OSError once the file is not the one first opened."""
        event.listen(engine, "do_connect", lambda *_: self._check())  # it would make a new one
        event.listen(engine, "connect", lambda *_: self._remember())
        event.listen(engine, "checkout", lambda *_: self._check())

    def _remember(self) -> None:
        if self._opened is None:
            self._opened = self._identity()

    def _check(self) -> None:
        if self._opened is not None and self._identity() != self._opened:
            why = "the file of the database was removed or replaced while it was open"
            raise OSError(errno.ESTALE, why, str(self.path))

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino
