"""The pictures of a dataset on their way to the server: read in chunks while they are sent.

Both clients send them with this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from limner.v1 import training_pb2
from services.client.errors import ArgumentError

_CHUNK_BYTES = 256 * 1024

Picture: TypeAlias = str | PathLike[str] | tuple[str, bytes]
"""The path of a picture, or its name and its encoded bytes."""


class Upload:
    """The messages of an upload, a chunk at a time.

    With `captions`, what a picture shows is taken from the `.txt` file beside it, if there is one.
    """

    def __init__(self, pictures: Iterable[Picture], *, captions: bool = False) -> None:
        self._pictures, self._captions = list(pictures), captions
        self.failure: OSError | ArgumentError | None = None
        """What ended the messages early; grpc only tells that something did."""

    def __iter__(self) -> Iterator[training_pb2.UploadDatasetRequest]:
        """Yield them. Raises OSError for an unreadable file, ArgumentError for a name or caption
        that no message holds."""
        try:
            for picture in self._pictures:
                yield from _messages(picture, captions=self._captions)
        except (OSError, ArgumentError) as error:
            self.failure = error
            raise


def _messages(picture: Picture, *, captions: bool) -> Iterator[training_pb2.UploadDatasetRequest]:
    name, chunks = _chunks(picture)
    caption = _caption(picture) if captions else None
    try:
        first = training_pb2.UploadDatasetRequest(file_name=name, caption=caption)
    except UnicodeEncodeError:
        raise ArgumentError("pictures", f"the name {name!r} cannot be written in UTF-8") from None
    first.data = next(chunks, b"")
    yield first
    for chunk in chunks:
        yield training_pb2.UploadDatasetRequest(data=chunk)


def _chunks(picture: Picture) -> tuple[str, Iterator[bytes]]:
    if isinstance(picture, tuple):
        name, data = picture
        return name, (data[i : i + _CHUNK_BYTES] for i in range(0, len(data), _CHUNK_BYTES))
    path = Path(picture)
    return path.name, _read(path)


def _caption(picture: Picture) -> str | None:
    if isinstance(picture, tuple):
        return None
    path = Path(picture).with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None
    except UnicodeDecodeError as error:
        raise ArgumentError("pictures", f"{path} is no UTF-8: {error}") from None


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
