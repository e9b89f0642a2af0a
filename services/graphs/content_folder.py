"""Folders that are named by what their content was made from, and are complete or absent.

The stores of exported graphs and of engines keep theirs with it. A folder has a manifest with the
digest of every file; one that does not match is made again. Processes may share a root.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from services.graphs.graph import GraphStoreError

_MANIFEST = "manifest.json"
_PARTIAL_PREFIX = ".partial-"
_ABANDONED_AFTER_S = 3600.0

logger = logging.getLogger(__name__)


def content_key(parts: object) -> str:
    """Digest of a JSON value that decides a folder's content, 24 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return `folder`, filled first if it is missing or damaged.

    `fill` writes the files into a new folder, which then takes the place. Raises what `fill`
    raises, and `GraphStoreError` where the disk is full, read-only or no folder.
    """
    if _is_intact(folder):
        return folder
    if folder.exists():
        logger.warning("exported graph is damaged and will be made again: %s", folder)
    root = folder.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL_PREFIX, dir=root))
        try:
            fill(partial)
            _write_manifest(partial)
            _install(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise GraphStoreError(f"cannot keep exported graphs in {root}: {reason}") from error
    return folder


def _is_intact(folder: Path) -> bool:
    """Whether every file is there as it was written."""
    try:
        digests = json.loads((folder / _MANIFEST).read_text())["sha256"]
        return bool(digests) and all(
            file_digest(folder / name) == digest for name, digest in digests.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _remove_abandoned(root: Path) -> None:
    """Clear what a killed process left; a younger folder may still be written to."""
    for partial in root.glob(f"{_PARTIAL_PREFIX}*"):
        if time.time() - partial.stat().st_mtime > _ABANDONED_AFTER_S:
            shutil.rmtree(partial, ignore_errors=True)


def _install(partial: Path, folder: Path) -> None:
    """Move a complete folder to its place, unless another process was faster."""
    if folder.exists() and not _is_intact(folder):
        shutil.rmtree(folder)
    try:
        partial.rename(folder)
    except OSError:
        if not _is_intact(folder):
            raise


def _write_manifest(folder: Path) -> None:
    digests = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps({"sha256": digests}, indent=1))
