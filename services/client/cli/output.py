"""Where the pictures of a run go: checked before the request is sent, written whole.

Used by `limner generate` and `limner demo`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from services.client.enum_names import IMAGE_FORMATS
from services.client.events import Accepted, GeneratedImage
from services.client.files import write_whole

STDOUT = "-"

_FORMAT_OF_SUFFIX: Mapping[str, str] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
_MAX_SLUG_LENGTH = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The plan for the files of a run."""

    path: Path | None
    """None: named after prompt and seed in the current folder. `-`: standard output."""
    output_format: str | None

    @property
    def is_stdout(self) -> bool:
        """Whether the picture goes to standard output."""
        return self.path == Path(STDOUT)

    def write(self, image: GeneratedImage, accepted: Accepted, prompt: str) -> Path | None:
        """Write one picture and return its path, None for standard output. Raises OSError."""
        if self.is_stdout:
            sys.stdout.buffer.write(image.data)
            sys.stdout.buffer.flush()
            return None
        suffix = "." + accepted.output_format.replace("jpeg", "jpg")
        path = self.path or Path(f"{_slug(prompt)}-{accepted.seed}{suffix}")
        path = numbered(path, image.index, accepted.sample_count)
        image.save(path)
        return path


def plan_output(path: Path | None, output_format: str | None, sample_count: int | None) -> Output:
    """Return where pictures go. A usage error when that cannot work, before anything is drawn.

    Raises ArgumentError for an unknown format.
    """
    if output_format is not None:
        IMAGE_FORMATS.number(output_format, field="output_format")
    if path == Path(STDOUT):
        if (sample_count or 1) > 1:
            raise typer.BadParameter("standard output takes one picture", param_hint="--output")
    else:
        check_writable(path or Path("picture"), option="--output")
        output_format = _check_format(path, output_format)
    return Output(path=path, output_format=output_format)


def check_writable(path: Path, *, option: str) -> None:
    """Raise a usage error unless a file at `path` can be written."""
    folder = path.parent
    problem = None
    if path.is_dir():
        problem = f"{path} is a folder"
    elif not folder.is_dir():
        problem = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK | os.X_OK):
        problem = f"the folder {folder.resolve()} is not writable"
    if problem:
        raise typer.BadParameter(problem, param_hint=option)


def numbered(path: Path, index: int, count: int) -> Path:
    """Return the path of one of several files: `apple.png` becomes `apple-0.png`."""
    return path if count == 1 else path.with_name(f"{path.stem}-{index}{path.suffix}")


class PreviewFile:
    """Keeps the newest preview of each sample in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, index: int, sample_count: int, data: bytes) -> None:
        """Replace the file of a sample. Raises OSError."""
        write_whole(numbered(self._path, index, sample_count), data)


def _check_format(path: Path | None, output_format: str | None) -> str | None:
    if path is None:
        return output_format
    known = _FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if output_format is None and known is None:
        suffixes = ", ".join(_FORMAT_OF_SUFFIX)
        message = f"{path.name} does not end in {suffixes}; name it so or set --format"
        raise typer.BadParameter(message, param_hint="--output")
    if output_format is not None and known is not None and output_format.lower() != known:
        message = f"{output_format} does not go with the name {path.name}"
        raise typer.BadParameter(message, param_hint="--format")
    return output_format or known


def _slug(prompt: str) -> str:
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")
    return words[:_MAX_SLUG_LENGTH].strip("-_") or "picture"
