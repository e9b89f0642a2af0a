"""A checked run as this process: trains, and says in exit code and status file how it ended."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

from safetensors import SafetensorError

from services.storage.disk import is_disk_full
from services.trainer.run.base_model import BaseModelError
from services.trainer.run.locking import only_process
from services.trainer.run.reading import CheckedRun
from services.trainer.run.reporting import RunReport
from services.trainer.run.stopping import StopFlag
from services.trainer.run.telling import telling
from services.trainer.run.violations import (
    EXIT_DISK_FULL,
    EXIT_FAILED,
    EXIT_REFUSED,
    EXIT_STOPPED,
    RefusedError,
    StoppedError,
)


def execute(run: CheckedRun, stop: StopFlag) -> int:
    """Run what was checked; returns the exit code, and leaves the reason in the status file."""
    with telling() as tell:
        return _execute(run, stop, RunReport(run.configuration.output, tell=tell))


def _execute(run: CheckedRun, stop: StopFlag, report: RunReport) -> int:
    # Not before it is needed: it takes seconds, and a check needs none of it.
    from services.trainer.run.training import OUT_OF_MEMORY_ERRORS, train

    is_first = all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "RANK"))
    if not is_first:
        report.mute()
    ended = False
    try:
        with only_process(run.configuration.output, stop) if is_first else nullcontext():
            result = train(run, report=report, stop=stop)
            report.update(state="succeeded", eta_s=0.0)
        ended = True
    except StoppedError as error:
        report.update(state="stopped", message=str(error))
        ended = True
        # Lightning kills a node's first process if another of the node ends with anything but 0.
        return EXIT_STOPPED if os.environ.get("LOCAL_RANK", "0") == "0" else 0
    except RefusedError as error:
        report.refuse(error.violations)
        ended = True
        print(f"the run cannot start:\n{error}", file=sys.stderr)
        return EXIT_REFUSED
    except (*OUT_OF_MEMORY_ERRORS, BaseModelError, OSError, SafetensorError) as error:
        is_memory = isinstance(error, OUT_OF_MEMORY_ERRORS)
        reason = "OUT_OF_MEMORY" if is_memory else "UNUSABLE_FILES"
        ended = True
        print(f"the run failed: {error}", file=sys.stderr)
        return _fail(report, reason, error)
    finally:
        if not ended:
            report.update(state="failed", reason="INTERNAL", message="a defect; see the log")
    print(f"result: {result}")
    return 0


def _fail(report: RunReport, reason: str, error: Exception) -> int:
    """Say so; returns the exit code, which has to say it where the status file cannot."""
    try:
        report.update(state="failed", reason=reason, message=str(error))
    except OSError as unsaid:
        print(f"the status cannot be written: {unsaid}", file=sys.stderr)
    return EXIT_DISK_FULL if is_disk_full(error) else EXIT_FAILED
