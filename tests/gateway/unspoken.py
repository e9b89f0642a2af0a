"""What must never be told: keys, prompts and pictures in logs, metrics and errors."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Sequence

from services.runtime.logs import new_formatter


def log_lines(records: Iterable[logging.LogRecord]) -> list[str]:
    """As they would be written."""
    formatter = new_formatter()
    return [formatter.format(record) for record in records]


def spoken(texts: Sequence[str], *, key: str, prompts: Sequence[str], data: bytes) -> list[str]:
    """What of the secrets is in `texts`, in whatever form; `data` by its first bytes."""
    head = data[:24]
    written = [
        head.decode("latin-1"),
        repr(head)[2:-1],
        head.hex(),
        base64.b64encode(head).decode(),
    ]
    secrets = [key, key[:-8], *prompts, *written]
    return [secret for secret in secrets if any(secret in text for text in texts)]
