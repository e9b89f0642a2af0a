"""One process at a time in an output folder.

A run that was told to stop may still be writing its checkpoint when its successor starts.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.trainer.run.stopping import StopFlag

_LOCK_FILE = ".lock"
_RETRY_S = 0.2


@contextmanager
def only_process(folder: Path, stop: StopFlag) -> Iterator[None]:
    """Hold the folder for the length of a block; waits for whoever holds it.

    The system gives a lock back when its holder ends, however it ends. Raises `StoppedError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stop.check()
                time.sleep(_RETRY_S)
        yield
