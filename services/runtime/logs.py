"""JSON logs on stderr, one object a line, each with the request id of the call it was made for.

Called once by each `__main__`. What may be logged is for those who log: never a prompt, a key or an
image.
"""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from services.runtime.context import find_current_request


def configure_logging(level: str) -> None:
    """Log to stderr from `level` (`DEBUG` to `CRITICAL`) on, in place of any other handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(new_formatter())
    handler.addFilter(add_request_id)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def new_formatter() -> logging.Formatter:
    """Return the formatter of the log lines: time (UTC), level, logger, message, extras."""
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
        json_ensure_ascii=False,
    )


def add_request_id(record: logging.LogRecord) -> bool:
    """Put the request id on a record that was made while a call was served; drop none."""
    request = find_current_request()
    if request is not None and not hasattr(record, "request_id"):
        record.request_id = request.request_id
    return True
