"""Failures in a few lines for people: what went wrong, in which option, what to do.

Used by the command and by `limner demo`.
"""

from __future__ import annotations

from collections.abc import Callable

from services.client.cli.console import Console
from services.client.errors import (
    InvalidRequest,
    LimnerError,
    ServerError,
    Unauthenticated,
    Unavailable,
)

_EXCERPT_MARGIN = 40
"""How many characters to show before and behind those that cannot be written."""


def describe(error: LimnerError, name_of: Callable[[str], str]) -> str:
    """Return what to print for a failed call; lines without a trailing newline.

    `name_of` tells what the user calls a field of the request, see `FieldNames`.
    """
    if isinstance(error, InvalidRequest) and error.violations:
        lines = ["limner: the request is not valid"]
        found = (_line(name_of(each.field), each.description) for each in error.violations)
        return "\n".join([*lines, *dict.fromkeys(found)])
    return "\n".join([f"limner: {_headline(error)}", *_advice(error)])


def print_failure(lines: str) -> None:
    """Print what `describe` and its like return."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(lines, style="red", markup=False)


def describe_os_error(error: OSError) -> str:
    """Return what to print where a file or an address cannot be used."""
    what = error.strerror or str(error)
    return f"limner: {what}" if error.filename is None else f"limner: {error.filename}: {what}"


def describe_encode_error(error: UnicodeEncodeError) -> str:
    """Return what to print for text that a request, or standard output, cannot hold."""
    start = max(0, error.start - _EXCERPT_MARGIN)
    excerpt = error.object[start : error.end + _EXCERPT_MARGIN]
    return f"limner: {excerpt!r} cannot be written in {error.encoding.upper()}"


def _line(name: str, description: str) -> str:
    return f"  {name}: {description}" if name else f"  {description}"


def _headline(error: LimnerError) -> str:
    if isinstance(error, Unavailable) and not error.reason:
        return "no server could be reached"
    return str(error)


def _advice(error: LimnerError) -> list[str]:
    if isinstance(error, Unavailable) and not error.reason:
        return [f"  {error}", "  Is `limner up` running? Set --address for a server elsewhere."]
    if isinstance(error, Unauthenticated):
        return ["  Set LIMNER_API_KEY to a key made with `limner keys create`."]
    if error.retry_after_s is not None:
        return [f"  Try again in {error.retry_after_s:g} s."]
    if isinstance(error, ServerError) and error.request_id:
        return [f"  The server's logs have more under request id {error.request_id}."]
    return []
