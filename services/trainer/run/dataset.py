"""A folder of training pictures: found, checked, named by content.

Called by the checks of a run, and to load what was checked. The files come from strangers, so that
they are decoded by `services.imaging.decoding` alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.imaging.decoding import decode_image
from services.imaging.header import UnusableImageError, read_header
from services.runtime.errors import FieldViolation
from services.trainer.run.violations import violation

MIN_PICTURES = 1
MAX_PICTURES = 1000
MAX_FILE_BYTES = 32 * 2**20
MAX_PIXELS = 50_000_000
# Smaller pictures would be enlarged to more than four times their pixels.
_MIN_SIDE_SHARE = 0.5
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MAX_CAPTION = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One file that was checked."""

    path: Path
    digest: str
    """SHA-256 of its bytes."""
    caption: str | None


def find_pictures(
    folder: Path, *, field: str, side: int, captions: bool
) -> tuple[tuple[Picture, ...], tuple[FieldViolation, ...]]:
    """Pictures in `folder` by name, and everything that is wrong with them.

    Every file with a picture's suffix must be a readable picture at least half as large as `side`
    and unlike the others. Sub-folders and other files do not count.
    """
    if not folder.is_dir():
        return (), (violation(field, "NOT_FOUND", f"there is no folder {folder}"),)
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())
    if not MIN_PICTURES <= len(paths) <= MAX_PICTURES:
        allowed = f"must hold {MIN_PICTURES} to {MAX_PICTURES} PNG, JPEG or WebP pictures"
        return (), (violation(field, "WRONG_COUNT", f"{allowed}; {folder} has {len(paths)}"),)
    pictures: list[Picture] = []
    faults: list[FieldViolation] = []
    for path in paths:
        data = path.read_bytes() if path.stat().st_size <= MAX_FILE_BYTES else None
        place = f"{field}[{path.name}]"
        found = list(_faults(data, side, place))
        digest = hashlib.sha256(data or b"").hexdigest()
        twin = next((other.path.name for other in pictures if other.digest == digest), None)
        if twin is not None and not found:
            found.append(violation(place, "DUPLICATE", f"is the same file as {twin}"))
        caption, caption_faults = _caption(path, place) if captions else (None, [])
        faults += found + caption_faults
        pictures.append(Picture(path=path, digest=digest, caption=caption))
    return tuple(pictures), tuple(faults)


def dataset_digest(pictures: Sequence[Picture]) -> str:
    """Digest of names' order, bytes and captions, 64 hexadecimal digits."""
    return hashlib.sha256("".join(map(_line, pictures)).encode()).hexdigest()


def _line(picture: Picture) -> str:
    """A picture as text, of which no other pictures are a part: what goes on after a line of a
    caption begins with a space, a picture with a digit of its digest.

    A caption of one line is as it is: checkpoints rest on the digests of all releases.
    """
    caption = (picture.caption or "").replace("\n", "\n ")
    return f"{picture.digest} {caption}\n"


def load_rgb(picture: Picture) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3); what is transparent lies on white. Raises `UnusableImageError`."""
    pixels = decode_image(picture.path.read_bytes(), max_pixel_count=MAX_PIXELS).pixels
    if pixels.shape[2] in (2, 4):
        alpha = pixels[:, :, -1:].astype(np.uint32)
        on_white = pixels[:, :, :-1].astype(np.uint32) * alpha + 255 * (255 - alpha)
        pixels = ((on_white + 127) // 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _faults(data: bytes | None, side: int, place: str) -> Iterator[FieldViolation]:
    if data is None:
        yield violation(place, "TOO_LARGE", f"must have at most {MAX_FILE_BYTES} bytes")
        return
    try:
        header = read_header(data)
        least = round(side * _MIN_SIDE_SHARE)
        if min(header.width, header.height) < least:
            yield violation(
                place,
                "TOO_SMALL",
                f"must be at least {least} pixels a side; got {header.width} × {header.height}",
            )
        decode_image(data, max_pixel_count=MAX_PIXELS)
    except UnusableImageError as error:
        yield violation(place, error.problem, str(error))


def _caption(path: Path, place: str) -> tuple[str | None, list[FieldViolation]]:
    file = path.with_suffix(".txt")
    if not file.is_file():
        return None, []
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        return None, [violation(place, "BAD_CAPTION", f"{file.name} cannot be read: {error}")]
    if not 0 < len(text) <= _MAX_CAPTION:
        allowed = f"{file.name} must have 1 to {_MAX_CAPTION} characters; got {len(text)}"
        return None, [violation(place, "BAD_CAPTION", allowed)]
    return text, []
