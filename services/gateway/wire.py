"""A serialized message looked at where it lies: top-level fields by number, nothing copied.

Used for messages that are large and of which little is needed: a piece of a picture, whose bytes
are only relayed. It knows the encoding (protobuf.dev, "Encoding") and no message.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


class WireError(ValueError):
    """The bytes are not a serialized message."""


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message in `data[start:end]`: number, wire type, and two numbers.

    These are where the value begins and ends; for a VARINT they are the value and where it ends.
    Raises WireError.
    """
    while start < end:
        tag, start = _varint(data, start, end)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, start = _varint(data, start, end)
            yield number, kind, value, start
            continue
        if kind == BYTES:
            size, start = _varint(data, start, end)
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
        else:
            raise WireError(f"wire type {kind} is not in use")
        if size > end - start:
            raise WireError("a field ends after its message")
        yield number, kind, start, start + size
        start += size


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """An unsigned number of at most ten bytes, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise WireError("a number does not end")
