"""The one error tree of the services, and what each error looks like to a gRPC client.

    LimnerError
    ├── InvalidRequestError    INVALID_ARGUMENT    INVALID_REQUEST, lists every violation
    ├── ModelNotFoundError     NOT_FOUND           MODEL_NOT_FOUND, names what exists
    ├── NotFoundError          NOT_FOUND           ACCOUNT_NOT_FOUND|KEY_NOT_FOUND
    ├── AlreadyExistsError     ALREADY_EXISTS      ACCOUNT_EXISTS|GRANT_DIFFERS
    ├── StateError             FAILED_PRECONDITION KEY_REVOKED|KEY_EXPIRED|KEY_REPLACED|TIER_UNKNOWN
    ├── UnauthenticatedError   UNAUTHENTICATED     KEY_MISSING|_MALFORMED|_UNKNOWN|_REVOKED|_EXPIRED
    ├── PermissionDeniedError  PERMISSION_DENIED   SCOPE_MISSING|ACCOUNT_SUSPENDED|MODEL_NOT_ALLOWED
    ├── QueueFullError         RESOURCE_EXHAUSTED  QUEUE_FULL, says when to try again
    ├── UnavailableError       UNAVAILABLE         SHUTTING_DOWN|BACKEND_LOST|NO_BACKEND|NOT_READY
    ├── DeadlineExceededError  DEADLINE_EXCEEDED   DEADLINE_EXCEEDED
    ├── InternalError          INTERNAL            INTERNAL
    └── RelayedError           the backend's       what a backend refused, passed through

Handlers raise these; `services.runtime.interceptors` alone turns them into a status, by
`services.runtime.status`. Nothing here knows a server, and no error ever carries a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2

DOMAIN = "limner"
STATUS_DETAILS_KEY = "grpc-status-details-bin"
RETRY_PUSHBACK_KEY = "grpc-retry-pushback-ms"

# A client drops a call whose trailers exceed 8 kB, so that what has no natural end is clipped.
_VIOLATIONS_BYTES = 2400
_TEXT_BYTES = 256
_NAMES_SHOWN = 20

UnauthenticatedReason = Literal[
    "KEY_MISSING", "KEY_MALFORMED", "KEY_UNKNOWN", "KEY_REVOKED", "KEY_EXPIRED"
]
PermissionDeniedReason = Literal["SCOPE_MISSING", "ACCOUNT_SUSPENDED", "MODEL_NOT_ALLOWED"]
StateReason = Literal[
    "KEY_REVOKED",
    "KEY_EXPIRED",
    "KEY_REPLACED",
    "TIER_UNKNOWN",
    "JOB_NOT_RESUMABLE",
    "JOB_NOT_ENDED",
]
UnavailableReason = Literal["SHUTTING_DOWN", "BACKEND_LOST", "NO_BACKEND", "NOT_READY"]

_UNAVAILABLE_MESSAGES: Mapping[UnavailableReason, str] = {
    "SHUTTING_DOWN": "The server is shutting down; try again on another.",
    "BACKEND_LOST": "The backend was lost while it served the request; try again.",
    "NO_BACKEND": "No healthy backend serves this request now; try again later.",
    "NOT_READY": "The server is not ready yet; try again later.",
}


class LimnerError(Exception):
    """An error with a gRPC status code and a machine-readable reason.

    `metadata` goes into `google.rpc.ErrorInfo`: keys are lowerCamel or snake case, values are
    clipped to 256 bytes. `message` is for people, names no secret and repeats no prompt.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    tells_all: ClassVar[bool] = False
    """Whether `trailers` has what the server announces with every answer."""
    reason: str = "INTERNAL"

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})

    @property
    def status_code(self) -> grpc.StatusCode:
        """The status code of this very error: the class's, except for a relayed one."""
        return self.code

    def details(self) -> list[Message]:
        """Return the `google.rpc` messages of the status; `ErrorInfo` always comes first."""
        metadata = {key: clip(value, _TEXT_BYTES) for key, value in self.metadata.items()}
        return [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=metadata),
        ]

    def trailers(self) -> dict[str, str]:
        """Return trailing metadata beside the status details."""
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldViolation:
    """One thing that is wrong with one field of a request."""

    field: str
    """Path of the field, for example `width`."""
    reason: str
    """UPPER_SNAKE_CASE, stable, for example `OUT_OF_RANGE`."""
    description: str
    """For people: what is allowed, and what came."""


class InvalidRequestError(LimnerError):
    """The request breaks the contract; every violation is listed, not only the first."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        if not violations:
            raise ValueError("an invalid request has at least one violation")
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)

    def details(self) -> list[Message]:
        """Add `BadRequest`; what does not fit in the trailers is counted in a last violation."""
        listed: list[error_details_pb2.BadRequest.FieldViolation] = []
        size_bytes = 0
        for message in self._messages():
            # Tag and length cost up to four bytes each.
            size_bytes += message.ByteSize() + 4
            if size_bytes > _VIOLATIONS_BYTES:
                break
            listed.append(message)
        if unlisted_count := len(self.violations) - len(listed):
            listed.append(
                error_details_pb2.BadRequest.FieldViolation(
                    reason="TRUNCATED",
                    description=f"{unlisted_count} further violations are not listed",
                )
            )
        return [*super().details(), error_details_pb2.BadRequest(field_violations=listed)]

    def _messages(self) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
        for violation in self.violations:
            yield error_details_pb2.BadRequest.FieldViolation(
                field=clip(violation.field, _TEXT_BYTES),
                reason=clip(violation.reason, _TEXT_BYTES),
                description=clip(violation.description, _TEXT_BYTES),
            )


class ModelNotFoundError(LimnerError):
    """No model has this name; the message and `metadata.known` say which exist."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        listed = ", ".join(sorted(known)[:_NAMES_SHOWN])
        if len(known) > _NAMES_SHOWN:
            listed += f" and {len(known) - _NAMES_SHOWN} more"
        there_is = f"there is: {listed}" if known else "no model is loaded"
        super().__init__(
            f"No model {clip(name, _TEXT_BYTES)!r}; {there_is}.",
            metadata={"model": name, "known": listed},
        )


class NotFoundError(LimnerError):
    """What the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND

    def __init__(
        self, message: str, *, reason: Literal["ACCOUNT_NOT_FOUND", "KEY_NOT_FOUND"]
    ) -> None:
        super().__init__(message)
        self.reason = reason


class AlreadyExistsError(LimnerError):
    """What the request would create exists; nothing was changed."""

    code = grpc.StatusCode.ALREADY_EXISTS

    def __init__(self, message: str, *, reason: Literal["ACCOUNT_EXISTS", "GRANT_DIFFERS"]) -> None:
        super().__init__(message)
        self.reason = reason


class StateError(LimnerError):
    """What the request names is in a state that does not allow it; nothing was changed."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, message: str, *, reason: StateReason) -> None:
        super().__init__(message)
        self.reason = reason


class UnauthenticatedError(LimnerError):
    """The call carries no key that opens the door."""

    code = grpc.StatusCode.UNAUTHENTICATED

    def __init__(self, message: str, *, reason: UnauthenticatedReason) -> None:
        super().__init__(message)
        self.reason = reason


class PermissionDeniedError(LimnerError):
    """The caller is known, and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED

    def __init__(self, message: str, *, reason: PermissionDeniedReason) -> None:
        super().__init__(message)
        self.reason = reason


class QueueFullError(LimnerError):
    """The server's queue is full; `retry_after_s` seconds later there may be room."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"

    def __init__(self, retry_after_s: float) -> None:
        if not 0 <= retry_after_s < math.inf:
            raise ValueError(f"retry_after_s must be finite and not negative: {retry_after_s}")
        super().__init__(f"The queue is full; try again in {retry_after_s:.1f} s.")
        self.retry_after_s = retry_after_s

    def details(self) -> list[Message]:
        """Add `RetryInfo`."""
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(self._retry_after_ms)
        return [*super().details(), retry]

    def trailers(self) -> dict[str, str]:
        """Tell gRPC's own retry policy when to come back (gRFC A6)."""
        return {RETRY_PUSHBACK_KEY: str(self._retry_after_ms)}

    @property
    def _retry_after_ms(self) -> int:
        return math.ceil(self.retry_after_s * 1000)


class UnavailableError(LimnerError):
    """This server cannot serve the call now, another one or a later try may."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, message: str | None = None, *, reason: UnavailableReason) -> None:
        super().__init__(message or _UNAVAILABLE_MESSAGES[reason])
        self.reason = reason


class DeadlineExceededError(LimnerError):
    """The caller's deadline passed before the work was done."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"

    def __init__(self, message: str = "The deadline passed before the work was done.") -> None:
        super().__init__(message)


class InternalError(LimnerError):
    """A defect of ours. The log tells more, under the same request id; the message must not."""

    def __init__(self, message: str = "Internal error; the server's log has it.") -> None:
        super().__init__(message)


class RelayedError(LimnerError):
    """A backend's refusal, with its code, message and details as they came."""

    reason = "BACKEND_ERROR"

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        status_details: bytes | None,
        pushback_ms: str | None = None,
    ) -> None:
        super().__init__(message)
        self._relayed_code = code
        self._pushback_ms = pushback_ms
        self.status_details = status_details
        """The serialized `google.rpc.Status` to pass on byte for byte; None: make one."""

    @property
    def status_code(self) -> grpc.StatusCode:
        """The backend's status code."""
        return self._relayed_code

    def trailers(self) -> dict[str, str]:
        """Pass the backend's retry pushback on."""
        return {} if self._pushback_ms is None else {RETRY_PUSHBACK_KEY: self._pushback_ms}


def from_rpc_error(error: grpc.aio.AioRpcError) -> LimnerError:
    """Return what a proxy raises when its call to a backend failed with `error`.

    A status that the backend made is passed through unchanged. Without details it comes from the
    transport: a lost connection is BACKEND_LOST, a passed deadline DEADLINE_EXCEEDED, and anything
    else keeps its code and message under the reason BACKEND_ERROR.
    """
    trailers = dict(error.trailing_metadata() or ())
    status_details = trailers.get(STATUS_DETAILS_KEY)
    if status_details is None and error.code() is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(reason="BACKEND_LOST")
    if status_details is None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceededError()
    return RelayedError(
        error.code(),
        error.details() or "",
        status_details=status_details,
        pushback_ms=trailers.get(RETRY_PUSHBACK_KEY),
    )


def clip(text: str, size_bytes: int) -> str:
    """Return `text`, cut with an ellipsis to at most `size_bytes` bytes of UTF-8."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= size_bytes:
        return text
    return encoded[: size_bytes - 3].decode(errors="ignore") + "…"
