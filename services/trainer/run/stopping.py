"""SIGTERM, SIGINT and the end of the parent as a flag that is looked at where stopping is safe."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from services.trainer.run.violations import StoppedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Set by a signal once `listen` was called from the main thread, or by `set`."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def listen(self) -> None:
        """Take the signals, also from another who took them since."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def when_input_ends(self) -> None:
        """Set the flag when standard input ends: whoever holds its other end is gone, however it
        went."""
        watch = threading.Thread(target=self._await_end_of_input, name="parent-watch", daemon=True)
        watch.start()

    def set(self) -> None:
        """Ask to stop."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise `StoppedError` if the flag is set."""
        if self.is_set:
            raise StoppedError("asked to stop")

    def _await_end_of_input(self) -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        self.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.set()
