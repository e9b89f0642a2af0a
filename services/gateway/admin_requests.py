"""Requests of the account and the admin service, parsed: all violations of a request at once.

A `RequestCheck` collects what is wrong while a handler reads its fields, and `finish` raises it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration

from services.gateway.admin_messages import SCOPE_NAMES
from services.gateway.names import check_account, check_grant, check_key_name, check_note
from services.gateway.period import Period
from services.gateway.scopes import DEFAULT_SCOPES, Scope
from services.gateway.tiers import TierCatalog, UnknownTierError
from services.runtime.errors import FieldViolation, InvalidRequestError

_DEFAULT_PAGE_SIZE = 100
_MAX_PAGE_SIZE = 1000
_KEY_ID = re.compile(r"[0-9A-Za-z]{12}", re.ASCII)

_Parsed = TypeVar("_Parsed")


class RequestCheck:
    """The fields of one request. What a method returns counts only if `finish` raises nothing."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []

    def finish(self) -> None:
        """Raises InvalidRequestError when anything was wrong."""
        if self._violations:
            raise InvalidRequestError(self._violations)

    def account(self, field: str, name: str) -> str:
        """A name of an account."""
        return self._checked(name, check_account(field, name))

    def optional_account(self, field: str, name: str) -> str | None:
        """A name of an account, or None when it is left out."""
        return self.account(field, name) if name else None

    def key_name(self, field: str, name: str) -> str:
        """What a key is for."""
        return self._checked(name, check_key_name(field, name))

    def key_id(self, field: str, text: str) -> str:
        """An id of a key."""
        if not _KEY_ID.fullmatch(text):
            description = "is the id of a key, as ListKeys has it"
            self._add(field, "INVALID_KEY_ID" if text else "REQUIRED", description)
        return text

    def note(self, field: str, text: str) -> str:
        """A note for people."""
        return self._checked(text, check_note(field, text))

    def grant(self, field: str, millicredits: int) -> int:
        """An amount to grant."""
        return self._checked(millicredits, check_grant(field, millicredits))

    def tier(self, field: str, name: str, tiers: TierCatalog) -> str:
        """The name of a tier that exists."""
        try:
            tiers.get(name)
        except UnknownTierError as error:
            self._add(field, "UNKNOWN_TIER", str(error))
        return name

    def scopes(self, field: str, numbers: Iterable[int]) -> frozenset[Scope]:
        """Scopes; the default ones when none is named."""
        numbers = list(numbers)
        for index, number in enumerate(numbers):
            if number not in SCOPE_NAMES:
                self._add(f"{field}[{index}]", "INVALID_SCOPE", f"{number} is not a scope")
        named = frozenset(SCOPE_NAMES[number] for number in numbers if number in SCOPE_NAMES)
        return named or DEFAULT_SCOPES

    def period(self, field: str, text: str) -> Period:
        """A month; the current one when it is left out."""
        named = self._parsed(field, "INVALID_PERIOD", text, Period.parse) if text else None
        return named or Period.containing(datetime.now(UTC))

    def duration(
        self, field: str, message: Duration, *, least: timedelta, most: timedelta
    ) -> timedelta:
        """A span of time within bounds."""
        seconds = message.seconds + message.nanos / 1e9
        if not least.total_seconds() <= seconds <= most.total_seconds():
            self._add(field, "OUT_OF_RANGE", f"must be {least} to {most}, got {seconds:g} s")
            return least
        return timedelta(seconds=seconds)

    def page_size(self, field: str, size: int) -> int:
        """How many to return."""
        if not 0 <= size <= _MAX_PAGE_SIZE:
            self._add(field, "OUT_OF_RANGE", f"must be 0 to {_MAX_PAGE_SIZE}, got {size}")
        return size or _DEFAULT_PAGE_SIZE

    def account_cursor(self, field: str, token: str) -> str:
        """The name that the page comes after; empty for the first page."""
        name = self._cursor(field, token, re.compile(r"[a-z0-9._-]{1,100}", re.ASCII))
        return name or ""

    def key_cursor(self, field: str, token: str) -> tuple[datetime, str] | None:
        """Creation and id of the key that the page comes after; None for the first page."""
        text = self._cursor(field, token, re.compile(r"[-+:.0-9T]{19,32} [0-9A-Za-z]{12}"))
        if text is None:
            return None
        created, _, key_id = text.partition(" ")
        moment = self._parsed(field, "INVALID_PAGE_TOKEN", created, datetime.fromisoformat)
        return None if moment is None else (moment.replace(tzinfo=UTC), key_id)

    def entry_cursor(self, field: str, token: str) -> int | None:
        """The id of the audit entry that the page comes after; None for the first page."""
        text = self._cursor(field, token, re.compile(r"[0-9]{1,18}", re.ASCII))
        return None if text is None else int(text)

    def _cursor(self, field: str, token: str, pattern: re.Pattern[str]) -> str | None:
        if not token:
            return None
        return self._parsed(
            field, "INVALID_PAGE_TOKEN", token, lambda text: _from_token(text, pattern)
        )

    def _parsed(
        self, field: str, reason: str, text: str, parse: Callable[[str], _Parsed]
    ) -> _Parsed | None:
        try:
            return parse(text)
        except ValueError as error:
            self._add(field, reason, str(error))
            return None

    def _checked(self, value: _Parsed, violations: Iterator[FieldViolation]) -> _Parsed:
        self._violations.extend(violations)
        return value

    def _add(self, field: str, reason: str, description: str) -> None:
        self._violations.append(FieldViolation(field=field, reason=reason, description=description))


def page_token(cursor: str) -> str:
    """The token of a page that comes after `cursor`; opaque to clients."""
    return base64.urlsafe_b64encode(cursor.encode()).decode()


def _from_token(token: str, pattern: re.Pattern[str]) -> str:
    try:
        text = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        text = ""
    if pattern.fullmatch(text) is None:
        raise ValueError("is not a token that a page of this list came with")
    return text
