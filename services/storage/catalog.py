"""The catalogue of trained models: weights and the facts about them, each account's apart.

    ROOT/ACCOUNT/JOB/entry.json     account and job as digest and id; written last
                     model/         diffusers layout, ready to be loaded
                     …              whatever else the run left: samples, LoRA files, configuration

The trainer publishes and removes entries, the diffusion server reads them; both see the same
folder, in a cluster a shared volume. An entry appears and goes as a whole. `Catalog` is the seam:
an object store would keep the files and hand out a local copy of `model`. Everything blocks.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from services.storage.durable import move_folder

SEPARATOR = "@"
"""Between the base and the rest of a trained model's name; no other model has it in its name."""
_ENTRY = "entry.json"
_MODEL = "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """A trained model."""

    name: str
    """Name for requests, `base@name`."""
    job_id: str
    account: str
    """Who owns it, and nobody else sees it."""
    base_model: str
    base_revision: str
    revision: str
    """Digest of the model's files, 16 hexadecimal digits."""
    method: str
    token: str
    instance_prompt: str
    class_prompt: str
    dataset_digest: str
    configuration: Mapping[str, Any] = field(default_factory=dict)
    """Every value that was used."""
    samples: tuple[str, ...] = ()
    """The last sample pictures, relative to the entry's folder."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every file, by its path relative to the entry's folder."""
    size_bytes: int = 0
    """Of the files in `model`."""
    created: str = ""
    """ISO 8601, UTC."""


class Catalog(Protocol):
    """Where trained models are kept."""

    def publish(self, entry: CatalogEntry, result: Path) -> CatalogEntry:
        """Take in what a run left in the folder `result`; the same job again changes nothing."""
        ...

    def remove(self, account: str, job_id: str) -> None:
        """Remove an entry, if it is there."""
        ...

    def entries(self, account: str) -> list[CatalogEntry]:
        """The account's models, sorted by name."""
        ...

    def model_folder(self, entry: CatalogEntry) -> Path | None:
        """A local folder with the model; None when the entry was removed."""
        ...


class FolderCatalog:
    """A `Catalog` in a folder of a file system."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def publish(self, entry: CatalogEntry, result: Path) -> CatalogEntry:
        """See `Catalog`; files are linked where that can be, else copied, and on the disk when this
        returns. Raises OSError."""
        final = self._folder(entry.account, entry.job_id)
        known = _read_entry(final)
        if known is not None:
            return known
        partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
        _remove_leftovers(final)
        try:
            shutil.copytree(result, partial, copy_function=_link_or_copy)
            complete = _complete(entry, partial)
            text = json.dumps(asdict(complete), indent=1)
            (partial / _ENTRY).write_text(text, encoding="utf-8")
            _remove_folder(final)  # what a crash left without an entry
            move_folder(partial, final)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return complete

    def remove(self, account: str, job_id: str) -> None:
        """See `Catalog`. Raises OSError."""
        folder = self._folder(account, job_id)
        _remove_folder(folder)
        _remove_leftovers(folder)

    def entries(self, account: str) -> list[CatalogEntry]:
        """See `Catalog`; a folder that cannot be read is not listed."""
        folder = self._account_folder(account)
        folders = [each for each in _children(folder) if not each.name.startswith(".")]
        found = [entry for entry in map(_read_entry, folders) if entry is not None]
        return sorted(found, key=lambda entry: entry.name)

    def model_folder(self, entry: CatalogEntry) -> Path | None:
        """See `Catalog`."""
        folder = self._folder(entry.account, entry.job_id)
        return folder / _MODEL if (folder / _ENTRY).is_file() else None

    def _account_folder(self, account: str) -> Path:
        # A digest: an account's name may hold what a file's may not.
        return self._root / hashlib.sha256(account.encode()).hexdigest()[:32]

    def _folder(self, account: str, job_id: str) -> Path:
        return self._account_folder(account) / job_id


def base_name(model: str) -> str:
    """The model that decides what a request for `model` may do and costs: its base, or itself."""
    return model.partition(SEPARATOR)[0]


def _complete(entry: CatalogEntry, folder: Path) -> CatalogEntry:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): _digest(path) for path in paths}
    model = {name: digest for name, digest in files.items() if name.startswith(f"{_MODEL}/")}
    if not model:
        raise FileNotFoundError(f"{folder / _MODEL} holds no model")
    listed = "".join(f"{name} {digest}\n" for name, digest in model.items())
    values = asdict(entry) | {
        "files": files,
        "revision": hashlib.sha256(listed.encode()).hexdigest()[:16],
        "size_bytes": sum((folder / name).stat().st_size for name in model),
        "samples": tuple(name for name in files if name.startswith("samples/")),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return CatalogEntry(**values)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_entry(folder: Path) -> CatalogEntry | None:
    try:
        values = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))
        return CatalogEntry(**values | {"samples": tuple(values["samples"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _children(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _remove_leftovers(folder: Path) -> None:
    """Remove what was on its way to `folder`, or away from it, when a process was killed."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


def _remove_folder(folder: Path) -> None:
    """Remove a folder so that nobody sees a half of it."""
    gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        os.replace(folder, gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)  # another removal of the job may be at it, too
    if gone.exists():
        raise OSError(f"{gone} cannot be removed")
