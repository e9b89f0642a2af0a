"""Uploaded pictures: taken in file by file, checked together, kept under a digest.

Everything here blocks; callers use a thread. A client's file names appear in messages and nowhere
else: files are numbered.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from services.runtime.errors import FieldViolation, InvalidRequestError, clip
from services.storage.durable import move_folder
from services.trainer.run.dataset import MAX_FILE_BYTES, dataset_digest, find_pictures

MAX_DATASET_BYTES = 512 * 2**20
MAX_PICTURES = 100
LEAST_SIDE = 64
CAPTION_SUFFIX = ".txt"
_PARTIAL = ".upload-"
_MAX_NAME = 255
_MAX_CAPTION = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of an upload."""

    file_name: str | None
    """Begins a picture; None: the last one goes on."""
    data: bytes
    caption: str | None = None
    """What a picture that begins shows."""


class DatasetStore:
    """Datasets below a folder, each account's apart from the others'."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, account: str, dataset_id: str) -> Path | None:
        """The folder of a dataset; None where the account has none of this id."""
        if not (len(dataset_id) == 64 and set(dataset_id) <= set("0123456789abcdef")):
            return None
        folder = self._account_folder(account) / dataset_id
        return folder if folder.is_dir() else None

    def open_upload(self, account: str) -> Upload:
        """Begin to take pictures in."""
        folder = self._account_folder(account)
        folder.mkdir(parents=True, exist_ok=True)
        return Upload(folder)

    def discard_unfinished(self) -> None:
        """Remove what uploads left that were under way when a service died; none may be now."""
        for partial in self._folder.glob(f"*/{_PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)

    def _account_folder(self, account: str) -> Path:
        # A digest: an account's name may hold what a file's may not.
        return self._folder / hashlib.sha256(account.encode()).hexdigest()[:32]


class Upload:
    """One dataset on its way in; `discard` leaves nothing of it behind but what `finish` kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
        self._names: list[str] = []
        self._faults: list[FieldViolation] = []
        self._total = 0
        self._size = 0

    def discard(self) -> None:
        """Remove what was not kept; a no-op after `finish`."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def write(self, piece: Piece) -> None:
        """Take the next piece. Raises `InvalidRequestError` where going on makes no sense."""
        data = piece.data
        if piece.file_name is not None:
            self._begin(piece.file_name, piece.caption)
        if not self._names:
            raise InvalidRequestError(
                [_fault("file_name", "REQUIRED", "the first message must begin a picture")]
            )
        self._size += len(data)
        self._total += len(data)
        if self._total > MAX_DATASET_BYTES:
            allowed = f"all pictures together must have at most {MAX_DATASET_BYTES} bytes"
            raise InvalidRequestError([_fault("pictures", "TOO_LARGE", allowed)])
        if self._size <= MAX_FILE_BYTES:
            with (self._partial / self._file(len(self._names) - 1)).open("ab") as file:
                file.write(data)
        elif self._size - len(data) <= MAX_FILE_BYTES:
            place = f"pictures[{len(self._names) - 1}]"
            self._faults.append(
                _fault(place, "TOO_LARGE", f"must have at most {MAX_FILE_BYTES} bytes")
            )

    def finish(self) -> tuple[str, int]:
        """Check everything and keep it; returns the dataset's id and the number of pictures.

        Raises `InvalidRequestError` with every violation.
        """
        if not self._names:
            raise InvalidRequestError([_fault("pictures", "REQUIRED", "must hold pictures")])
        pictures, found = find_pictures(
            self._partial, field="pictures", side=2 * LEAST_SIDE, captions=True
        )
        faults = [*self._faults, *self._renamed(found)]
        if faults:
            raise InvalidRequestError(faults)
        dataset_id = dataset_digest(pictures)
        kept = self._folder / dataset_id
        if not kept.is_dir():
            try:
                move_folder(self._partial, kept)
            except OSError:
                if not kept.is_dir():  # another upload of the same pictures was faster
                    raise
        return dataset_id, len(pictures)

    def _begin(self, file_name: str, caption: str | None) -> None:
        index = len(self._names)
        if index >= MAX_PICTURES:
            allowed = f"must be at most {MAX_PICTURES}"
            raise InvalidRequestError([_fault("pictures", "WRONG_COUNT", allowed)])
        if not 1 <= len(file_name) <= _MAX_NAME:
            allowed = f"file_name must have 1 to {_MAX_NAME} characters"
            self._faults.append(_fault(f"pictures[{index}]", "OUT_OF_RANGE", allowed))
        self._names.append(file_name)
        self._size = 0
        path = self._partial / self._file(index)
        path.touch()
        if caption is None:
            return
        if len(caption.strip()) > 0 and len(caption) <= _MAX_CAPTION:
            path.with_suffix(CAPTION_SUFFIX).write_text(caption, encoding="utf-8")
        else:
            allowed = f"a caption must have 1 to {_MAX_CAPTION} characters; got {len(caption)}"
            self._faults.append(_fault(f"pictures[{index}]", "BAD_CAPTION", allowed))

    def _renamed(self, faults: tuple[FieldViolation, ...]) -> Iterator[FieldViolation]:
        """Violations by index and by the names that the client knows."""
        places = {f"pictures[{self._file(i)}]": i for i in range(len(self._names))}
        for fault in faults:
            index = places.get(fault.field)
            if index is None:
                yield fault
                continue
            description = fault.description
            for number, name in enumerate(self._names):
                description = description.replace(self._file(number), clip(name, 64))
            named = f"{clip(self._names[index], 64)}: {description}"
            yield replace(fault, field=f"pictures[{index}]", description=named)

    def _file(self, index: int) -> str:
        # The suffix only says that it is a picture; what it is, its bytes say.
        return f"{index:03d}.png"


def _fault(field: str, reason: str, description: str) -> FieldViolation:
    return FieldViolation(field=field, reason=reason, description=description)
