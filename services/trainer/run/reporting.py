"""What a run tells the world while it goes on: two files in its output folder.

`status.json` says where the run stands, for whoever watches it: replaced as a whole, at most once a
second unless the state changes. `losses.jsonl` has a line for every optimizer step, and no time in
it: it is the same however often the run was interrupted. Only the first process reports.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from services.runtime.errors import FieldViolation

RunState = Literal["preparing", "running", "stopped", "succeeded", "failed", "refused"]

STATUS_FILE = "status.json"
LOSSES_FILE = "losses.jsonl"
_LEAST_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLosses:
    """A line of `losses.jsonl`: means over an optimizer step of all processes."""

    step: int
    loss: float
    instance_loss: float
    prior_loss: float | None
    learning_rate: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """Contents of `status.json`."""

    state: RunState = "preparing"
    step: int = 0
    step_count: int = 0
    class_picture_count: int = 0
    """Class pictures that are there, of those that prior preservation needs."""
    losses: StepLosses | None = None
    validation_loss: float | None = None
    seconds_per_step: float | None = None
    """Mean since the process started to train."""
    eta_s: float | None = None
    samples: tuple[str, ...] = ()
    """The newest sample pictures, relative to the output folder."""
    reason: str | None = None
    """Why it did not end well, UPPER_SNAKE_CASE."""
    message: str | None = None
    violations: tuple[dict[str, str], ...] = ()


class RunReport:
    """Writes both files; `tell` is called with every status that is written."""

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        tell: Callable[[RunStatus], None] | None = None,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._tell = tell
        self._written_at: float | None = None
        self._muted = False
        self.status = RunStatus()

    def mute(self) -> None:
        """Write no status from now on: this is not the run's first process."""
        self._muted = True

    def update(self, **changes: object) -> None:
        """Change the status; it is written now if the state changes, else when it is due."""
        before = self.status.state
        self.status = replace(self.status, **changes)  # type: ignore[arg-type]
        now = self._clock()
        due = self._written_at is None or now - self._written_at >= _LEAST_INTERVAL_S
        if due or self.status.state != before:
            self._written_at = now
            self.write()

    def write(self) -> None:
        """Write the status as it is."""
        if not self._muted:
            self._write_status()
            if self._tell is not None:
                self._tell(self.status)

    def _write_status(self) -> None:
        write_atomically(self._folder / STATUS_FILE, json.dumps(asdict(self.status), indent=1))

    def refuse(self, violations: tuple[FieldViolation, ...]) -> None:
        """End as refused."""
        listed = tuple(
            {"field": v.field, "reason": v.reason, "description": v.description} for v in violations
        )
        message = "; ".join(f"{v.field}: {v.description}" for v in violations)
        self.update(state="refused", reason="BAD_INPUT", message=message, violations=listed)

    def losses(self, losses: StepLosses) -> None:
        """Add a line."""
        with (self._folder / LOSSES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(losses)) + "\n")

    def rewind(self, step: int) -> None:
        """Forget the lines after optimizer step `step`; the run is about to write them again."""
        path = self._folder / LOSSES_FILE
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        # A line without an end was cut off by a full disk.
        whole = (line for line in lines if line.endswith("\n"))
        write_atomically(path, "".join(line for line in whole if json.loads(line)["step"] <= step))


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
