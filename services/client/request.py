"""What a generation can be asked for, and its way into a request message.

Both clients and the command build their requests here. Nothing is validated that the server
validates: its answer lists all violations, and limits differ from model to model.
"""

from __future__ import annotations

from typing import Any, TypedDict

from google.protobuf.message import Message

from limner.v1 import generation_pb2
from services.client.enum_names import IMAGE_FORMATS, SAMPLERS
from services.client.errors import ArgumentError


class GenerateOptions(TypedDict, total=False):
    """Options of a generation; the model's default holds where one is absent or None."""

    model: str | None
    """Name of the model."""
    negative_prompt: str | None
    """What the picture must not show."""
    width: int | None
    """Width in pixels."""
    height: int | None
    """Height in pixels."""
    step_count: int | None
    """Denoising steps."""
    guidance_scale: float | None
    """Classifier-free guidance scale; off at 1 or below."""
    seed: int | None
    """Seed of the first sample, 0 to 2^32 - 1; sample i uses seed + i. Random when absent."""
    sampler: str | None
    """Name of the sampler, for example `dpmpp_2m_karras`."""
    sample_count: int | None
    """How many pictures to draw."""
    output_format: str | None
    """`png`, `jpeg` or `webp`."""
    preview_interval: int | None
    """A preview every so many steps; none when absent or 0."""


def build_request(
    prompt: str,
    *,
    sampler: str | None = None,
    output_format: str | None = None,
    **fields: Any,
) -> generation_pb2.GenerateImageRequest:
    """Return the request for a prompt and `GenerateOptions`.

    Raises TypeError for an unknown option, ArgumentError for an unknown sampler or format and for a
    number or text that the field cannot hold.
    """
    request = generation_pb2.GenerateImageRequest()
    unknown = fields.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    if sampler is not None:
        fields["sampler"] = SAMPLERS.number(sampler, field="sampler")
    if output_format is not None:
        fields["output_format"] = IMAGE_FORMATS.number(output_format, field="output_format")
    for name, value in {"prompt": prompt, **fields}.items():
        if value is not None:
            set_field(request, name, value)
    return request


def set_field(request: Message, name: str, value: object) -> None:
    """Set a field of a message; errors as in `build_request`."""
    try:
        setattr(request, name, value)
    except UnicodeEncodeError:
        raise ArgumentError(name, f"{value!r} cannot be written in UTF-8") from None
    except ValueError as error:
        raise ArgumentError(name, str(error)) from None
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
