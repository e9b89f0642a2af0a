"""What a generation reports, as frozen data: the events of a stream and the result of a call.

Returned by both clients. The classes mirror `limner.v1.GenerateImageResponse`, with enums by name
and the chunks of a picture joined.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from services.client.files import write_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """A remark about a request that was accepted."""

    code: str
    """UNKNOWN_WORDS or PROMPT_TRUNCATED."""
    message: str
    """One sentence for people."""
    field: str
    """Path of the request field that it is about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """First event: every value that the server settled on, enough to repeat the run exactly."""

    request_id: str
    model: str
    model_revision: str
    width: int
    height: int
    step_count: int
    guidance_scale: float
    seed: int
    sampler: str
    sample_count: int
    output_format: str
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Queued:
    """The request waits; `position` requests are ahead of it."""

    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Denoising steps done and in all, over all samples."""

    completed_step_count: int
    total_step_count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A rough picture of sample `index` after `step` of its steps."""

    index: int
    step: int
    data: bytes = field(repr=False)
    mime_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedImage:
    """A finished picture."""

    index: int
    """Which sample of the request, from 0."""
    data: bytes = field(repr=False)
    """The encoded file."""
    mime_type: str
    seed: int | None
    """Seed that draws this picture again."""
    width: int
    height: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, replacing what is there; unchanged on error. Raises OSError."""
        write_whole(path, self.data)


Event = Accepted | Queued | Progress | Preview | GeneratedImage


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationResult:
    """A finished generation."""

    accepted: Accepted
    """The resolved values of the run."""
    images: tuple[GeneratedImage, ...]
    """The pictures, in the order of their index; never empty."""

    @property
    def image(self) -> GeneratedImage:
        """The first picture, the only one unless more were asked for."""
        return self.images[0]
