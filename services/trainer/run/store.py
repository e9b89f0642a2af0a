"""Copies of checkpoints and loss curve in a store that outlives the machine.

Made in a thread while training goes on.

Called by supervision after a checkpoint was written, and at the start of a run whose own folder has
none. The store is a folder behind a URL, opened by fsspec: `file:///…` here, `s3://…` and others
where the package for them is installed. It keeps the newest of each name.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import fsspec

from services.trainer.run.violations import RefusedError, violation

_LOGGER = logging.getLogger(__name__)


class CheckpointStore:
    """A folder behind a URL."""

    def __init__(self, url: str) -> None:
        """Raises `RefusedError` for a URL that nothing here can open."""
        try:
            self._files, self._folder = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise RefusedError(
                [violation("checkpoint_store", "UNUSABLE_URL", str(error))]
            ) from error

    def put(self, path: Path) -> None:
        """Copy a file there, whole or not at all. Raises OSError."""
        self._files.makedirs(self._folder, exist_ok=True)
        target = f"{self._folder}/{path.name}"
        partial = f"{target}.partial"
        self._files.put_file(str(path), partial)
        self._files.mv(partial, target)

    def fetch(self, path: Path) -> bool:
        """Copy the file of that name from there to `path`; False where there is none.

        Raises OSError.
        """
        source = f"{self._folder}/{path.name}"
        if not self._files.exists(source):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._files.get_file(source, str(partial))
        os.replace(partial, path)
        return True


class CheckpointUpload:
    """Copies one file after the other in a thread; of each name at most one waits, the newest.

    A copy that fails is logged, and forgotten once a later one of that name succeeds.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-upload")
        self._waiting: dict[str, Path] = {}
        self._failed: dict[str, OSError] = {}
        self._is_copying = False
        self._work: Future[None] | None = None

    def submit(self, path: Path) -> None:
        """Have `path` copied as it is when its turn comes; returns at once."""
        with self._lock:
            self._waiting[path.name] = path
            if not self._is_copying:
                self._is_copying = True
                self._work = self._executor.submit(self._copy_all)

    def finish(self) -> None:
        """Wait for what is under way and waiting. Raises OSError where the newest copy of a name
        failed."""
        self._executor.shutdown(wait=True)
        if self._work is not None:
            self._work.result()
        if self._failed:
            name, error = next(iter(self._failed.items()))
            raise OSError(f"the copy of {name} in the checkpoint store failed: {error}") from error

    def _copy_all(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_copying = False
                    return
                name = next(iter(self._waiting))
                path = self._waiting.pop(name)
            try:
                self._store.put(path)
                self._failed.pop(name, None)
            except OSError as error:
                _LOGGER.warning("the checkpoint store did not take %s: %s", name, error)
                self._failed[name] = error
