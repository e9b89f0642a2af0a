"""The error tree of the SDK and its decoding from a failed call.

    LimnerError                 any failed call; has code, reason, request_id, metadata
    ├── InvalidRequest          INVALID_ARGUMENT; `violations` lists every wrong field
    ├── Unauthenticated         UNAUTHENTICATED; `reason` says what is wrong with the key
    ├── PermissionDenied        PERMISSION_DENIED
    ├── NotFound                NOT_FOUND
    │   └── ModelNotFound       the message names the models that exist
    ├── AlreadyExists           ALREADY_EXISTS; another has the name, the id or the key
    ├── FailedPrecondition      FAILED_PRECONDITION; not in the state that things are in
    ├── Aborted                 ABORTED; a request with this id runs already
    ├── ResourceExhausted       RESOURCE_EXHAUSTED; a limit, `reason` says which
    │   └── QueueFull           the queue for the device is full; see `retry_after_s`
    ├── Unavailable             UNAVAILABLE; shutting down, starting, lost, or unreachable
    ├── DeadlineExceeded        DEADLINE_EXCEEDED; `timeout_s` has passed
    ├── Cancelled               CANCELLED; the stream was closed
    ├── Unimplemented           UNIMPLEMENTED; the server does not serve this call
    └── ServerError             INTERNAL, UNKNOWN and every other code
        └── IncompleteStream    the stream ended well without all pictures, or broke the contract

Both clients raise these and nothing else for a call that failed. Wrong arguments that need no
server to be seen (an unknown sampler name) are ArgumentError, which is a ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_TRAILER = "grpc-status-details-bin"
_REQUEST_ID_TRAILER = "x-request-id"


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """One wrong field of a request."""

    field: str
    """Path of the field, as in the proto."""
    description: str
    """One sentence for people."""
    reason: str = ""
    """Machine-readable, for example OUT_OF_RANGE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A failed call, decoded."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    retry_after_s: float | None = None
    violations: tuple[Violation, ...] = ()


class LimnerError(Exception):
    """A call that failed. `str()` is one line for people."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return self.failure.message or self.code.name

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return self.failure.code

    @property
    def reason(self) -> str:
        """Machine-readable reason, for example KEY_REVOKED; empty when the server gave none."""
        return self.failure.reason

    @property
    def metadata(self) -> Mapping[str, str]:
        """Further facts that belong to the reason."""
        return self.failure.metadata

    @property
    def request_id(self) -> str:
        """Id of the request in the server's logs; empty when no server answered."""
        return self.failure.request_id

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which the server wants to be asked again; None when it did not say."""
        return self.failure.retry_after_s


class ArgumentError(ValueError):
    """An argument that no request can hold; seen before there is a call."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        """Name of the field that the argument is for, as in the proto."""
        self.description = description


class InvalidRequest(LimnerError):
    """The request breaks the rules of the API or of the model."""

    def __str__(self) -> str:
        if not self.violations:
            return super().__str__()
        return "; ".join(f"{each.field}: {each.description}" for each in self.violations)

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Every wrong field, not only the first."""
        return self.failure.violations


class Unauthenticated(LimnerError):
    """The API key is missing, malformed, unknown or revoked."""


class PermissionDenied(LimnerError):
    """The key may not do this."""


class NotFound(LimnerError):
    """What the request names does not exist."""


class AlreadyExists(LimnerError):
    """Another has the name, the id or the idempotency key."""


class FailedPrecondition(LimnerError):
    """Not in the state that things are in; the message says what would have to change."""


class Aborted(LimnerError):
    """A request with the same id runs already."""


class ModelNotFound(NotFound):
    """The model does not exist; the message names those that do."""


class ResourceExhausted(LimnerError):
    """A limit was reached; `reason` says which one."""


class QueueFull(ResourceExhausted):
    """The queue for the device is full."""


class Unavailable(LimnerError):
    """The server cannot be reached, is starting or shutting down, or lost its backend."""


class DeadlineExceeded(LimnerError):
    """The call took longer than its timeout."""


class Cancelled(LimnerError):
    """The call was cancelled, here or on its way."""


class Unimplemented(LimnerError):
    """The server does not serve this call."""


class ServerError(LimnerError):
    """The server failed; quote `request_id` when reporting it."""


class IncompleteStream(ServerError):
    """The stream ended without an error and without all pictures, or broke the contract."""


_BY_REASON: Mapping[str, type[LimnerError]] = {
    "MODEL_NOT_FOUND": ModelNotFound,
    "QUEUE_FULL": QueueFull,
}

_BY_CODE: Mapping[grpc.StatusCode, type[LimnerError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}


def decode_error(call: grpc.RpcError) -> LimnerError:
    """Return the error that a failed call stands for, of `grpc` or `grpc.aio`.

    Details that cannot be read are left out.
    """
    metadata_pairs = cast("Iterable[tuple[str, str | bytes]]", call.trailing_metadata() or ())
    trailers = dict(metadata_pairs)
    info, retry, bad_request = _read_details(trailers.get(_DETAILS_TRAILER))
    metadata = dict(info.metadata)
    failure = Failure(
        code=call.code(),
        message=call.details() or "",
        reason=info.reason,
        metadata=metadata,
        request_id=metadata.get("request_id") or _text(trailers.get(_REQUEST_ID_TRAILER)),
        retry_after_s=None if retry is None else retry.retry_delay.ToTimedelta().total_seconds(),
        violations=tuple(
            Violation(field=each.field, description=each.description, reason=each.reason)
            for each in bad_request.field_violations
        ),
    )
    by_code = _BY_CODE.get(failure.code, ServerError)
    by_reason = _BY_REASON.get(failure.reason, by_code)
    return (by_reason if issubclass(by_reason, by_code) else by_code)(failure)


def _read_details(
    trailer: str | bytes | None,
) -> tuple[
    error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo | None, error_details_pb2.BadRequest
]:
    """Return the google.rpc details of a status, empty ones where it has none."""
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    has_retry = False
    try:
        status = status_pb2.Status.FromString(trailer if isinstance(trailer, bytes) else b"")
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad_request)
            has_retry |= detail.Unpack(retry)
    except DecodeError:
        pass  # The code and the message still tell what happened.
    return info, retry if has_retry else None, bad_request


def _text(value: str | bytes | None) -> str:
    return value if isinstance(value, str) else ""
