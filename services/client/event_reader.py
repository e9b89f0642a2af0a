"""Turns the responses of a generation into events and checks the contract.

No input or output happens here: both clients feed it what they receive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from limner.v1 import generation_pb2
from services.client.artifacts import ArtifactJoiner, JoinedArtifact
from services.client.enum_names import IMAGE_FORMATS, SAMPLERS
from services.client.events import (
    Accepted,
    Event,
    GeneratedImage,
    GenerationResult,
    Notice,
    Preview,
    Progress,
    Queued,
)

_Response_contra = TypeVar("_Response_contra", contravariant=True)
_Event_co = TypeVar("_Event_co", covariant=True)


class Reader(Protocol[_Response_contra, _Event_co]):
    """Reads the responses of one stream, in order."""

    def read(self, response: _Response_contra, /) -> _Event_co | None:
        """Return the event of a response; None when it completes none or is not known here.

        Raises IncompleteStream when the response breaks the contract.
        """
        ...

    def finish(self) -> None:
        """Raise IncompleteStream unless the stream delivered everything."""
        ...


class EventReader:
    """Reads the responses of one generation; see `Reader`."""

    def __init__(self) -> None:
        self._accepted: Accepted | None = None
        self._artifacts = ArtifactJoiner()

    def read(self, response: generation_pb2.GenerateImageResponse, /) -> Event | None:
        """Return the event of a response; see `Reader.read`."""
        match response.WhichOneof("event"):
            case "accepted":
                self._accepted = _accepted(response.accepted)
                self._artifacts.request_id = self._accepted.request_id
                return self._accepted
            case "queued":
                return Queued(position=response.queued.position)
            case "progress":
                return _progress(response.progress)
            case "preview":
                return _preview(response.preview)
            case "artifact":
                joined = self._artifacts.add(response.artifact)
                return _image(joined) if joined else None
            case _:
                return None

    def finish(self) -> None:
        """Raise IncompleteStream unless the stream delivered every picture."""
        if self._accepted is None:
            raise self._artifacts.broken("it ended before the request was accepted")
        missing = self._accepted.sample_count - self._artifacts.finished_count
        if missing > 0:
            raise self._artifacts.broken(
                f"{missing} of {self._accepted.sample_count} pictures are missing"
            )


class ResultCollector:
    """Builds the result of a generation from its events."""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        self._on_progress = on_progress
        self._accepted: Accepted | None = None
        self._images: list[GeneratedImage] = []

    def add(self, event: Event) -> None:
        """Take the next event; progress is passed on to the caller's function."""
        match event:
            case Accepted():
                self._accepted = event
            case Progress() if self._on_progress is not None:
                self._on_progress(event)
            case GeneratedImage():
                self._images.append(event)

    def result(self) -> GenerationResult:
        """Return the result of a stream that ended well."""
        assert self._accepted is not None
        images = tuple(sorted(self._images, key=lambda image: image.index))
        return GenerationResult(accepted=self._accepted, images=images)


def _image(joined: JoinedArtifact) -> GeneratedImage:
    info = joined.info
    return GeneratedImage(
        index=joined.index,
        data=joined.data,
        mime_type=info.mime_type,
        seed=info.seed if info.HasField("seed") else None,
        width=info.width,
        height=info.height,
    )


def _accepted(message: generation_pb2.Accepted) -> Accepted:
    return Accepted(
        request_id=message.request_id,
        model=message.model,
        model_revision=message.model_revision,
        width=message.width,
        height=message.height,
        step_count=message.step_count,
        guidance_scale=message.guidance_scale,
        seed=message.seed,
        sampler=SAMPLERS.name(message.sampler),
        sample_count=message.sample_count,
        output_format=IMAGE_FORMATS.name(message.output_format),
        notices=tuple(
            Notice(code=each.code, message=each.message, field=each.field)
            for each in message.notices
        ),
    )


def _progress(message: generation_pb2.Progress) -> Progress:
    return Progress(
        completed_step_count=message.completed_step_count,
        total_step_count=message.total_step_count,
    )


def _preview(message: generation_pb2.Preview) -> Preview:
    return Preview(
        index=message.index, step=message.step, data=message.image, mime_type=message.mime_type
    )
