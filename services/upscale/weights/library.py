"""Which upscalers there are: folders with a descriptor, and bare weights beside them.

Called at start-up and by the command. It reads descriptors and names of files, not weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.upscale.weights.descriptor import (
    DESCRIPTOR_FILE,
    Descriptor,
    FileSource,
    PackageSource,
    read_descriptor,
)
from services.upscale.weights.errors import DescriptorError, WeightsMissingError
from services.upscale.weights.files import CHECKPOINT, SAFETENSORS, package_files


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An upscaler that could be loaded."""

    name: str
    folder: Path
    descriptor: Descriptor | None
    """None for bare weights, which describe themselves."""
    weights: FileSource | PackageSource

    def missing(self) -> str | None:
        """What to do before it can be loaded; None when its weights are here."""
        if isinstance(self.weights, FileSource):
            path = self.folder / self.weights.file
            return None if path.is_file() else f"there is no file {path}"
        try:
            package_files(self.weights)
        except WeightsMissingError as error:
            return str(error)
        return None


def find_entries(folders: Sequence[Path]) -> dict[str, Entry]:
    """Every upscaler in `folders`, by name; those with their weights in the folder come first.

    Raises `DescriptorError` for a descriptor that cannot be read, a folder that does not exist, and
    two models of one name.
    """
    found: list[Entry] = []
    for folder in folders:
        if not folder.is_dir():
            raise DescriptorError(f"there is no folder {folder}")
        for path in sorted(folder.iterdir()):
            if (path / DESCRIPTOR_FILE).is_file():
                found.append(_described(path))
            elif path.is_file() and path.suffix in (SAFETENSORS, CHECKPOINT):
                found.append(_bare(path))
    names = [entry.name for entry in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DescriptorError(f"two upscalers have the name {', '.join(twice)}")
    found.sort(key=lambda entry: isinstance(entry.weights, PackageSource))
    return {entry.name: entry for entry in found}


def _described(folder: Path) -> Entry:
    descriptor = read_descriptor(folder)
    return Entry(name=folder.name, folder=folder, descriptor=descriptor, weights=descriptor.weights)


def _bare(path: Path) -> Entry:
    return Entry(
        name=path.stem, folder=path.parent, descriptor=None, weights=FileSource(file=path.name)
    )
