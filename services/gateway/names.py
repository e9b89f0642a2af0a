"""What names, notes and amounts may be, as violations of a request's fields.

Used by the admin service and by `limner keys bootstrap`. Account names travel in metadata and logs:
short and plain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

from services.gateway.tables import MAX_NAME_LENGTH, MAX_NOTE_LENGTH
from services.runtime.errors import FieldViolation

MAX_KEY_LIFETIME = timedelta(days=3650)
MAX_GRANT_MILLICREDITS = 10**12

_ACCOUNT_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?", re.ASCII)


def check_account(field: str, name: str) -> Iterator[FieldViolation]:
    """An account's name."""
    if len(name) > MAX_NAME_LENGTH or _ACCOUNT_PATTERN.fullmatch(name) is None:
        yield FieldViolation(
            field=field,
            reason="INVALID_NAME",
            description=f"an account's name is 1 to {MAX_NAME_LENGTH} characters of a-z, 0-9, '.',"
            " '_', '-', and begins and ends with a letter or digit",
        )


def check_key_name(field: str, name: str) -> Iterator[FieldViolation]:
    """What a key is for."""
    if not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        yield FieldViolation(
            field=field,
            reason="INVALID_NAME",
            description=f"a key's name is 1 to {MAX_NAME_LENGTH} printable characters",
        )


def check_note(field: str, note: str) -> Iterator[FieldViolation]:
    """A note for people."""
    if len(note) > MAX_NOTE_LENGTH or not (note.isprintable() or not note):
        yield FieldViolation(
            field=field,
            reason="INVALID_NOTE",
            description=f"a note is at most {MAX_NOTE_LENGTH} printable characters",
        )


def check_grant(field: str, millicredits: int) -> Iterator[FieldViolation]:
    """An amount of credits to grant."""
    if not 1 <= millicredits <= MAX_GRANT_MILLICREDITS:
        yield FieldViolation(
            field=field,
            reason="OUT_OF_RANGE",
            description=f"must be 0.001 to {MAX_GRANT_MILLICREDITS // 1000:,} credits, "
            f"got {Decimal(millicredits) / 1000:,}",
        )
