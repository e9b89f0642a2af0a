"""Joins the chunks of finished pictures and checks that they keep to the contract.

Used by the readers of both kinds of streams. No input or output happens here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from limner.v1 import artifact_pb2
from services.client.errors import Failure, IncompleteStream


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedArtifact:
    """A picture of which all chunks are here."""

    index: int
    info: artifact_pb2.ArtifactInfo
    data: bytes = field(repr=False)


class ArtifactJoiner:
    """Takes the chunks of one stream, in order."""

    def __init__(self) -> None:
        self.request_id = ""
        """Id to name in errors, once known."""
        self._index = 0
        self._info: artifact_pb2.ArtifactInfo | None = None
        self._data = bytearray()
        self._finished: set[int] = set()

    @property
    def finished_count(self) -> int:
        """Pictures that are complete."""
        return len(self._finished)

    def add(self, chunk: artifact_pb2.ArtifactChunk) -> JoinedArtifact | None:
        """Take the next chunk; returns the picture that it completes.

        Raises IncompleteStream when the chunk breaks the contract.
        """
        if self._info is None:
            if not chunk.HasField("info") or chunk.index in self._finished:
                raise self.broken(f"picture {chunk.index} does not begin with its description")
            self._index, self._info, self._data = chunk.index, chunk.info, bytearray()
        elif chunk.index != self._index or chunk.HasField("info"):
            raise self.broken(f"picture {chunk.index} cuts into {self._index}")
        self._data += chunk.data
        expected, size = self._info.size_bytes, len(self._data)
        if size > expected or (chunk.last and size != expected):
            raise self.broken(f"picture {chunk.index} has {size} of {expected} bytes")
        if not chunk.last:
            return None
        joined = JoinedArtifact(index=self._index, info=self._info, data=bytes(self._data))
        self._info, self._data = None, bytearray()
        self._finished.add(joined.index)
        return joined

    def broken(self, why: str) -> IncompleteStream:
        """Return the error for a stream that is at odds with the contract."""
        return IncompleteStream(
            Failure(
                code=grpc.StatusCode.INTERNAL,
                message=f"the server's stream is incomplete: {why}",
                request_id=self.request_id,
            )
        )
