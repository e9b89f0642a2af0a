"""Who calls, and by when: the request context of the call that is being served.

The interceptor sets it, handlers read it with `current_request()`, a proxy passes it on with
`outgoing_metadata()`. Who the caller is, is decided by an `Identify` function: a backend that only
the gateway can reach trusts its metadata, the gateway authenticates a key instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeAlias

from services.runtime.errors import FieldViolation, InvalidRequestError

REQUEST_ID_KEY = "x-request-id"
ACCOUNT_KEY = "x-limner-account"
PRIORITY_KEY = "x-limner-priority"
QUEUE_SHARE_KEY = "x-limner-queue-share"
RESERVATION_KEY = "x-limner-reservation"
"""What pays for a training job; the gateway tells it to the trainer beside the identity."""
ATTEMPT_KEY = "x-limner-attempt"
"""The attempt of a training job that the gateway has settled: no other is to go on or to go."""

_MAX_REQUEST_ID_LENGTH = 128
_MADE_ID_BYTES = 16
_MAX_PRIORITY = 1000

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who a call is made for."""

    account: str
    """Empty when nobody said so, as in development without a gateway."""
    priority: int = 0
    """Higher goes first, −1000 to 1000."""
    queue_share: float = 1.0
    """How full a queue may be, above 0 and up to 1, for the call to be put into it."""


Identify: TypeAlias = Callable[[Metadata], Awaitable[Identity]]
"""Tells from a call's metadata who makes it, or raises a `LimnerError`; runs before the handler,
in the handler's task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestContext:
    """What is known about a call beside its message."""

    request_id: str
    """The caller's, when it sent a usable one; at most 128 printable ASCII characters."""
    account: str
    """See `Identity.account`."""
    priority: int
    """See `Identity.priority`."""
    queue_share: float = 1.0
    """See `Identity.queue_share`."""
    deadline: float | None
    """Seconds on the clock of `time.monotonic`; None: the caller waits for ever."""

    def made_by(self, identity: Identity) -> RequestContext:
        """Return the same, with the caller known."""
        return RequestContext(
            request_id=self.request_id,
            account=identity.account,
            priority=identity.priority,
            queue_share=identity.queue_share,
            deadline=self.deadline,
        )


@dataclass(kw_only=True, slots=True)
class ResponseMetadata:
    """What a handler adds to the metadata of its answer, be it a failure; sent with the status."""

    trailing: list[tuple[str, str]] = field(default_factory=list)
    """Lower-case keys."""
    is_announced: bool = False
    """Whether what the server's `Announce` would add is there, or was asked for."""


Announce: TypeAlias = Callable[[], Awaitable[None]]
"""Adds to `response_metadata` what every answer of a server carries, unless the handler did; asked
before the metadata of an answer leaves, in the task of the call."""


async def announce_nothing() -> None:
    """Adds nothing."""


_CURRENT: ContextVar[RequestContext] = ContextVar("limner_request")
_RESPONSE: ContextVar[ResponseMetadata] = ContextVar("limner_response")


def current_request() -> RequestContext:
    """Return the context of the call that this task serves; LookupError outside of a call."""
    return _CURRENT.get()


def find_current_request() -> RequestContext | None:
    """Return the context of the call that this task serves, or None outside of a call."""
    return _CURRENT.get(None)


def set_current_request(request: RequestContext) -> None:
    """Make `request` the context of this task. For the interceptor, and for tests of handlers."""
    _CURRENT.set(request)


def response_metadata() -> ResponseMetadata:
    """Return what the call that this task serves answers beside its messages."""
    metadata = _RESPONSE.get(None)
    if metadata is None:
        metadata = ResponseMetadata()
        _RESPONSE.set(metadata)
    return metadata


def new_request_context(metadata: Metadata, remaining_s: float | None) -> RequestContext:
    """Open the context of a call that arrived now; nobody is identified yet."""
    return RequestContext(
        request_id=_request_id(first_value(metadata, REQUEST_ID_KEY)),
        account="",
        priority=0,
        deadline=None if remaining_s is None else time.monotonic() + remaining_s,
    )


def outgoing_metadata(request: RequestContext) -> tuple[tuple[str, str], ...]:
    """Return the metadata that tells a backend what this server knows about the call.

    What is as `Identity` has it by default is left out.
    """
    told = [(REQUEST_ID_KEY, request.request_id), (ACCOUNT_KEY, request.account)]
    if request.priority:
        told.append((PRIORITY_KEY, str(request.priority)))
    if request.queue_share != 1:
        told.append((QUEUE_SHARE_KEY, str(request.queue_share)))
    return tuple(told)


async def identity_from_metadata(metadata: Metadata) -> Identity:
    """Believe the metadata: right behind the gateway, wrong at the door.

    Raises InvalidRequestError when the priority is not a whole number from −1000 to 1000, or the
    queue share not a number above 0 and up to 1.
    """
    return Identity(
        account=first_value(metadata, ACCOUNT_KEY) or "",
        priority=_priority(first_value(metadata, PRIORITY_KEY)),
        queue_share=_queue_share(first_value(metadata, QUEUE_SHARE_KEY)),
    )


def first_value(metadata: Metadata, key: str) -> str | None:
    """Return the first text value under `key` (lower case), or None."""
    for name, value in metadata:
        if name == key and isinstance(value, str):
            return value
    return None


def _request_id(sent: str | None) -> str:
    if sent and len(sent) <= _MAX_REQUEST_ID_LENGTH and sent.isascii() and sent.isprintable():
        return sent
    return os.urandom(_MADE_ID_BYTES).hex()


def _priority(sent: str | None) -> int:
    if sent is None:
        return 0
    try:
        # At most five characters, as int() takes time quadratic in the length of its text.
        priority = int(sent[:6])
    except ValueError:
        priority = None
    if priority is None or abs(priority) > _MAX_PRIORITY:
        allowed = f"must be a whole number from -{_MAX_PRIORITY} to {_MAX_PRIORITY}"
        raise _out_of_range(PRIORITY_KEY, allowed)
    return priority


def _queue_share(sent: str | None) -> float:
    if sent is None:
        return 1.0
    try:
        share = float(sent)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:  # not a number is neither
        raise _out_of_range(QUEUE_SHARE_KEY, "must be a number above 0 and up to 1")
    return share


def _out_of_range(key: str, allowed: str) -> InvalidRequestError:
    violation = FieldViolation(field=f"metadata.{key}", reason="OUT_OF_RANGE", description=allowed)
    return InvalidRequestError([violation])
