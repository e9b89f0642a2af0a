"""What an upscaling can be asked for, its way into a message, and the answer's way out of it.

Used by both clients; no input or output happens here but the reading of a source file. Nothing is
validated that the server validates: its answer lists all violations.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from limner.v1 import upscale_pb2
from services.client.artifacts import ArtifactJoiner
from services.client.enum_names import IMAGE_FORMATS
from services.client.events import Notice, Queued
from services.client.request import set_field
from services.client.upscale_events import (
    TileProgress,
    UpscaleAccepted,
    UpscaledImage,
    UpscaleEvent,
    UpscaleResult,
)


class UpscaleOptions(TypedDict, total=False):
    """Options of an upscaling; the model's default holds where one is absent or None."""

    model: str | None
    """Name of the model."""
    scale: float | None
    """Factor by which width and height grow."""
    output_format: str | None
    """`png`, `jpeg` or `webp`."""
    denoise_strength: float | None
    """How much noise to remove, 0 to 1, with a model that has the choice."""


def build_upscale_request(
    image: bytes | str | os.PathLike[str],
    *,
    output_format: str | None = None,
    **fields: Any,
) -> upscale_pb2.UpscaleImageRequest:
    """Return the request for a picture, the bytes of a file or its path, and `UpscaleOptions`.

    Raises OSError when the file cannot be read, TypeError for an unknown option, ArgumentError for
    an unknown format and for text that the field cannot hold.
    """
    unknown = fields.keys() - UpscaleOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    request = upscale_pb2.UpscaleImageRequest(image=data)
    if output_format is not None:
        fields["output_format"] = IMAGE_FORMATS.number(output_format, field="output_format")
    for name, value in fields.items():
        if value is not None:
            set_field(request, name, value)
    return request


class UpscaleReader:
    """Reads the responses of one upscaling; see `event_reader.Reader`."""

    def __init__(self) -> None:
        self._accepted = False
        self._artifacts = ArtifactJoiner()

    def read(self, response: upscale_pb2.UpscaleImageResponse, /) -> UpscaleEvent | None:
        """Return the event of a response; see `Reader.read`."""
        match response.WhichOneof("event"):
            case "accepted":
                self._accepted = True
                self._artifacts.request_id = response.accepted.request_id
                return _read_accepted(response.accepted)
            case "queued":
                return Queued(position=response.queued.position)
            case "progress":
                return TileProgress(
                    completed_tile_count=response.progress.completed_tile_count,
                    total_tile_count=response.progress.total_tile_count,
                )
            case "artifact":
                joined = self._artifacts.add(response.artifact)
                if joined is None:
                    return None
                info = joined.info
                return UpscaledImage(
                    data=joined.data,
                    mime_type=info.mime_type,
                    width=info.width,
                    height=info.height,
                )
            case _:
                return None

    def finish(self) -> None:
        """Raise IncompleteStream unless the stream delivered the picture."""
        if not self._accepted:
            raise self._artifacts.broken("it ended before the request was accepted")
        if not self._artifacts.finished_count:
            raise self._artifacts.broken("the picture is missing")


class UpscaleCollector:
    """Builds the result of an upscaling from its events."""

    def __init__(self, on_progress: Callable[[TileProgress], None] | None) -> None:
        self._on_progress = on_progress
        self._accepted: UpscaleAccepted | None = None
        self._image: UpscaledImage | None = None

    def add(self, event: UpscaleEvent) -> None:
        """Take the next event; progress is passed on to the caller's function."""
        match event:
            case UpscaleAccepted():
                self._accepted = event
            case TileProgress() if self._on_progress is not None:
                self._on_progress(event)
            case UpscaledImage():
                self._image = event

    def result(self) -> UpscaleResult:
        """Return the result of a stream that ended well."""
        assert self._accepted is not None
        assert self._image is not None
        return UpscaleResult(accepted=self._accepted, image=self._image)


def _read_accepted(message: upscale_pb2.UpscaleAccepted) -> UpscaleAccepted:
    has_strength = message.HasField("denoise_strength")
    return UpscaleAccepted(
        request_id=message.request_id,
        model=message.model,
        model_revision=message.model_revision,
        source_width=message.source_width,
        source_height=message.source_height,
        width=message.width,
        height=message.height,
        scale=message.scale,
        output_format=IMAGE_FORMATS.name(message.output_format),
        denoise_strength=message.denoise_strength if has_strength else None,
        tile_count=message.tile_count,
        notices=tuple(
            Notice(code=each.code, message=each.message, field=each.field)
            for each in message.notices
        ),
    )
