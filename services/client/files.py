"""Writing pictures to files: whole or not at all.

Used by `GeneratedImage.save` and by the command.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, replacing what is there; unchanged on error.

    The bytes go to a neighbouring file that is renamed when complete, so that no reader ever sees
    half a picture. A path that is no regular file (a device, a pipe) is written to directly. Raises
    OSError that names `path`, whichever of the two files it was about.
    """
    try:
        _write(Path(path).resolve(), data)
    except OSError as error:
        if error.strerror is None:
            raise
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error


def _write(target: Path, data: bytes) -> None:
    if target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        part.replace(target)
    except BaseException:
        # Where the folder itself is gone or cannot be written, there is nothing to remove.
        with suppress(OSError):
            part.unlink()
        raise
