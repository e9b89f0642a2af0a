"""Failures in a few lines for people: what went wrong, in which option, what to do.

Used by the command and by `limner demo`.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.client.errors import (
    InvalidRequest,
    LimnerError,
    ServerError,
    Unauthenticated,
    Unavailable,
)

_OPTIONS: Mapping[str, str] = {
    "prompt": "PROMPT",
    "negative_prompt": "--negative",
    "model": "--model",
    "width": "--width",
    "height": "--height",
    "step_count": "--steps",
    "guidance_scale": "--guidance",
    "seed": "--seed",
    "sampler": "--sampler",
    "sample_count": "--samples",
    "output_format": "--format",
    "preview_interval": "--preview-every",
    "image": "IMAGE",
    "scale": "--scale",
    "denoise_strength": "--denoise",
    "dataset_id": "PHOTOS",
    "base_model": "--base",
    "token": "--token",
    "instance_prompt": "--prompt",
    "class_prompt": "--class-prompt",
    "method": "--method",
    "model_name": "--name",
    "webhook_url": "--webhook",
    "webhook_secret": "--webhook-secret",
    "period": "--month",
    "key_id": "KEY_ID",
}
_EXCERPT_MARGIN = 40
"""How many characters to show before and behind those that cannot be written."""


def describe(error: LimnerError) -> str:
    """Return what to print for a failed call; lines without a trailing newline."""
    if isinstance(error, InvalidRequest) and error.violations:
        lines = ["limner: the request is not valid"]
        lines += [
            f"  {_OPTIONS.get(each.field, each.field)}: {each.description}"
            for each in error.violations
        ]
        return "\n".join(lines)
    return "\n".join([f"limner: {_headline(error)}", *_advice(error)])


def describe_os_error(error: OSError) -> str:
    """Return what to print where a file or an address cannot be used."""
    what = error.strerror or str(error)
    return f"limner: {what}" if error.filename is None else f"limner: {error.filename}: {what}"


def describe_encode_error(error: UnicodeEncodeError) -> str:
    """Return what to print for text that a request, or standard output, cannot hold."""
    start = max(0, error.start - _EXCERPT_MARGIN)
    excerpt = error.object[start : error.end + _EXCERPT_MARGIN]
    return f"limner: {excerpt!r} cannot be written in {error.encoding.upper()}"


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
