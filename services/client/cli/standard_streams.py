"""Standard streams that are closed, full, or read by nobody any more.

Python has None in place of a stream that was closed before the command began, as by `>&-` in a
shell. A write to standard output is then a failure, as it is of any other file; standard error has
nobody who could be told.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import BinaryIO, NoReturn

_OUTPUT = "standard output"


def fill_standard_streams() -> None:
    """Put a stream in the place of each that is closed.

    Its descriptor is taken, too: else a connection would get the number, and what is meant for the
    stream.
    """
    for name in ("stdin", "stdout", "stderr"):  # by number: the lowest free one is taken first
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            is_output = name == "stdout"
            stream = _ClosedOutput() if is_output else open(descriptor, "r+")  # noqa: SIM115
            setattr(sys, name, stream)


def flush_output() -> None:
    """Write out what is buffered. Raises OSError, and forgets what could not be written.

    Python would try again when it ends, and complain in its own words.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, _OUTPUT) from None


class _ClosedOutput(io.TextIOBase):
    """Fails at the first write."""

    @property
    def buffer(self) -> BinaryIO:
        """What binary output would go to."""
        _fail()

    def write(self, text: str) -> int:
        """Raise OSError."""
        _fail()


def _fail() -> NoReturn:
    raise OSError(errno.EBADF, "it is closed", _OUTPUT)
