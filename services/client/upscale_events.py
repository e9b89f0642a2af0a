"""What an upscaling reports, as frozen data: the events of a stream and the result of a call.

Returned by both clients. The classes mirror `limner.v1.UpscaleImageResponse`, with enums by name
and the chunks of the picture joined.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from services.client.events import Notice, Queued
from services.client.files import write_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscaleAccepted:
    """First event: every value that the server settled on."""

    request_id: str
    model: str
    model_revision: str
    source_width: int
    source_height: int
    width: int
    height: int
    scale: float
    output_format: str
    denoise_strength: float | None
    """None for a model that has none."""
    tile_count: int
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TileProgress:
    """Tiles done and in all."""

    completed_tile_count: int
    total_tile_count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscaledImage:
    """The finished picture."""

    data: bytes = field(repr=False)
    """The encoded file."""
    mime_type: str
    width: int
    height: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, replacing what is there; unchanged on error. Raises OSError."""
        write_whole(path, self.data)


UpscaleEvent = UpscaleAccepted | Queued | TileProgress | UpscaledImage


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscaleResult:
    """A finished upscaling."""

    accepted: UpscaleAccepted
    """The resolved values."""
    image: UpscaledImage
    """The picture."""
