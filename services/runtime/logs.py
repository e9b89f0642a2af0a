"""JSON logs on stderr, one object a line, each with the request id of the call it was made for.

Called once by each `__main__`. What may be logged is for those who log: never a prompt, a key or an
image. Every call of a server leaves a line, which is why the formatter is a dozen lines of its own:
the one of python-json-logger takes three times as long.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from services.runtime.context import find_current_request

# What every record has, and the text of an exception, which is added apart; the rest was given.
_NOT_GIVEN = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


def configure_logging(level: str) -> None:
    """Log to stderr from `level` (`DEBUG` to `CRITICAL`) on, in place of any other handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(new_formatter())
    handler.addFilter(add_request_id)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # No line shows thread, process or place, which cost a third of making a record (Python's
    # Logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None


def new_formatter() -> logging.Formatter:
    """Return the formatter of the log lines: time (UTC), level, logger, message, extras."""
    return _JsonFormatter()


def add_request_id(record: logging.LogRecord) -> bool:
    """Put the request id on a record that was made while a call was served; drop none."""
    request = find_current_request()
    if request is not None and not hasattr(record, "request_id"):
        record.request_id = request.request_id
    return True


class _JsonFormatter(logging.Formatter):
    """What JSON has no form for is written as its text."""

    _encode = json.JSONEncoder(ensure_ascii=False, default=str).encode

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in vars(record).items():
            if key not in _NOT_GIVEN:
                line[key] = value
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack_info"] = self.formatStack(record.stack_info)
        return self._encode(line)
