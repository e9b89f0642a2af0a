"""What the end of a run's process means for its job."""

from __future__ import annotations

import signal

import pytest

from services.trainer.backends.backend import RunEnd
from services.trainer.supervisor import outcome


@pytest.mark.parametrize(
    ("exit_code", "cancelled", "stopped", "state", "reason"),
    [
        (0, False, False, "succeeded", None),
        (0, True, True, "succeeded", None),
        (143, False, True, "queued", None),
        (143, True, False, "cancelled", None),
        # Before it listened, or after: the service asked, so that nothing failed.
        (-signal.SIGTERM, False, True, "queued", None),
        (-signal.SIGTERM, False, False, "failed", "KILLED"),
        (-signal.SIGKILL, False, True, "failed", "KILLED"),
        (1, False, False, "failed", "INTERNAL"),
        (74, False, False, "failed", "UNUSABLE_FILES"),
    ],
)
def test_a_run_that_ended_moves_its_job(
    exit_code: int, cancelled: bool, stopped: bool, state: str, reason: str | None
) -> None:
    end = RunEnd(exit_code=exit_code)
    moved, failure = outcome(end, {}, cancelled=cancelled, stopped=stopped)
    assert moved == state
    assert (failure.reason if failure else None) == reason
