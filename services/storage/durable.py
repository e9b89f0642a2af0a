"""What survives a power cut: called by whoever is about to say that something is kept.

A rename is atomic for those who look, and no promise to the disk: after a crash the new name may
lead to files that were never written.
"""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Have a file's contents, or a folder's names, on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder once its files are on the disk: `target` is whole or not there, for ever.

    Raises OSError, also where `target` is there and not empty.
    """
    for folder, _, names in os.walk(source):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))
    os.rename(source, target)
    sync(target.parent)
    sync(target.parent.parent)  # the folder that it lies in may be as new
