"""Turns the responses of a stream into events, joins chunks and checks the contract.

No input or output happens here: both clients feed it what they receive.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from limner.v1 import artifact_pb2, generation_pb2
from services.client.enum_names import IMAGE_FORMATS, SAMPLERS
from services.client.errors import Failure, IncompleteStream
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


class EventReader:
    """Reads the responses of one stream, in order."""

    def __init__(self) -> None:
        self._accepted: Accepted | None = None
        self._partial: _PartialImage | None = None
        self._finished: set[int] = set()

    def read(self, response: generation_pb2.GenerateImageResponse) -> Event | None:
        """Return the event of a response; None when it completes none or is not known here.

        Raises IncompleteStream when the response breaks the contract.
        """
        match response.WhichOneof("event"):
            case "accepted":
                self._accepted = _accepted(response.accepted)
                return self._accepted
            case "queued":
                return Queued(position=response.queued.position)
            case "progress":
                return _progress(response.progress)
            case "preview":
                return _preview(response.preview)
            case "artifact":
                return self._add_chunk(response.artifact)
            case _:
                return None

    def finish(self) -> None:
        """Raise IncompleteStream unless the stream delivered every picture."""
        if self._accepted is None:
            raise self._broken("it ended before the request was accepted")
        missing = self._accepted.sample_count - len(self._finished)
        if missing > 0:
            raise self._broken(f"{missing} of {self._accepted.sample_count} pictures are missing")

    def _add_chunk(self, chunk: artifact_pb2.ArtifactChunk) -> GeneratedImage | None:
        if self._partial is None:
            if not chunk.HasField("info") or chunk.index in self._finished:
                raise self._broken(f"picture {chunk.index} does not begin with its description")
            self._partial = _PartialImage(chunk)
        elif chunk.index != self._partial.index or chunk.HasField("info"):
            raise self._broken(f"picture {chunk.index} cuts into {self._partial.index}")
        self._partial.data += chunk.data
        expected = self._partial.info.size_bytes
        size = len(self._partial.data)
        if size > expected or (chunk.last and size != expected):
            raise self._broken(f"picture {chunk.index} has {size} of {expected} bytes")
        if not chunk.last:
            return None
        image, self._partial = self._partial.image(), None
        self._finished.add(image.index)
        return image

    def _broken(self, why: str) -> IncompleteStream:
        return IncompleteStream(
            Failure(
                code=grpc.StatusCode.INTERNAL,
                message=f"the server's stream is incomplete: {why}",
                request_id=self._accepted.request_id if self._accepted else "",
            )
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


class _PartialImage:
    """A picture of which some chunks are here."""

    def __init__(self, first: artifact_pb2.ArtifactChunk) -> None:
        self.index = first.index
        self.info = first.info
        self.data = bytearray()

    def image(self) -> GeneratedImage:
        return GeneratedImage(
            index=self.index,
            data=bytes(self.data),
            mime_type=self.info.mime_type,
            seed=self.info.seed if self.info.HasField("seed") else None,
            width=self.info.width,
            height=self.info.height,
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
