"""What is wrong with a run before it starts, and the exit codes that tell how it ended.

    RunError
    ├── RefusedError    exit 42: configuration or data are bad, trying again is of no use
    └── StoppedError    exit 143: asked to stop, a checkpoint (if any step was done) is written

A full disk ends the process with 74, any other failure with 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.runtime.errors import FieldViolation

EXIT_FAILED = 1
EXIT_REFUSED = 42
EXIT_DISK_FULL = 74
"""EX_IOERR of sysexits.h; a status file cannot be written then."""
EXIT_STOPPED = 143


class RunError(Exception):
    """A run that did not end with a model."""


class RefusedError(RunError):
    """Configuration or data are bad; lists every violation."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        if not violations:
            raise ValueError("a refused run has at least one violation")
        super().__init__("\n".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)


class StoppedError(RunError):
    """The process was asked to stop, and may be started again."""


def violation(field: str, reason: str, description: str) -> FieldViolation:
    """One thing that is wrong; `field` is a path with dots, as in the configuration file."""
    return FieldViolation(field=field, reason=reason, description=description)
