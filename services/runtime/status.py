"""From an error to what goes over the wire: code, message and trailers that always fit.

Used by the interceptor. A client's default limit for a block of metadata is 8 kB, and a status that
exceeds it arrives as another error altogether; what is too long is therefore clipped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from services.runtime.context import REQUEST_ID_KEY
from services.runtime.errors import STATUS_DETAILS_KEY, LimnerError, RelayedError, clip

# Bytes on the wire: base64 adds a third, percent-encoding may triple. The message is sent twice,
# encoded for `grpc-message` and within the details: 600 × 3 + (600 + 4400) × 4/3 < 8 kB − headers.
_MESSAGE_BYTES = 600
_DETAILS_BYTES = 4000
# What all trailers together may take, and what each costs beside key and value (RFC 9113, 6.5.2).
_TRAILERS_BYTES = 7500
_ENTRY_BYTES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class WireStatus:
    """The arguments of `ServicerContext.abort`."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def wire_status(error: LimnerError, request_id: str) -> WireStatus:
    """Return the status of `error`, with the request id in the trailers and in `ErrorInfo`."""
    message = clip(error.message, _MESSAGE_BYTES)
    status_details = error.status_details if isinstance(error, RelayedError) else None
    if status_details is None:
        status_details = _status_details(error, message, request_id)
    else:
        message = error.message
    return WireStatus(
        code=error.status_code,
        message=message,
        trailers=(
            (REQUEST_ID_KEY, request_id),
            (STATUS_DETAILS_KEY, status_details),
            *error.trailers().items(),
        ),
    )


def fitting(status: WireStatus, pairs: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """`pairs` if there is room for them beside `status`, nothing otherwise; none comes twice."""
    known = {key for key, _ in status.trailers}
    pairs = [pair for pair in pairs if pair[0] not in known]
    size_bytes = 3 * len(status.message.encode())
    for key, value in (*status.trailers, *pairs):
        size_bytes += len(key) + 4 * len(value) // 3 + _ENTRY_BYTES
    return pairs if size_bytes <= _TRAILERS_BYTES else ()


def _status_details(error: LimnerError, message: str, request_id: str) -> bytes:
    number, _ = error.status_code.value
    status = status_pb2.Status(code=number, message=message)
    size_bytes = 0
    for detail in error.details():
        if isinstance(detail, error_details_pb2.ErrorInfo):
            detail.metadata["request_id"] = request_id
        size_bytes += detail.ByteSize()
        if size_bytes <= _DETAILS_BYTES:
            _pack(status, detail)
    serialized: bytes = status.SerializeToString()
    return serialized


def _pack(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)
