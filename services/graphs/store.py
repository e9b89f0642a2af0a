"""The folder of exported graphs: each is made once and found again by what it was made from.

`path` is what the selection calls. A graph lies in a folder of its own, named by its key, beside
a manifest with the digest of every file. A folder appears complete or not at all, and one that
does not match its manifest is made again; so two processes may share a store.
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

from services.graphs.export import export, exporter_versions
from services.graphs.graph import GraphSource, GraphStoreError
from services.graphs.quantization import quantize, quantizer_identity

_FILE = "model.onnx"
_MANIFEST = "manifest.json"
_PARTIAL_PREFIX = ".partial-"
_ABANDONED_AFTER_S = 3600.0

logger = logging.getLogger(__name__)


class GraphStore:
    """Exported graphs under one folder."""

    def __init__(
        self, root: Path, *, exporter: Callable[[GraphSource, Path], None] = export
    ) -> None:
        """Use `root`, which is made when the first graph is."""
        self._root = root
        self._export = exporter

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    def path(self, source: GraphSource) -> Path:
        """ONNX file of `source` in float32, exported first if it is missing or damaged.

        Raises `ExportError`, and `GraphStoreError` where the folder cannot be written.
        """
        return self._find(source.name, graph_key(source), lambda path: self._export(source, path))

    def quantized_path(self, source: GraphSource) -> Path:
        """ONNX file of `source` with 8-bit convolutions; as `path`, and slower to make.

        `source.calibration` must be there. Raises also `RuntimeMissingError`.
        """
        exported = self.path(source)
        return self._find(
            source.name, quantized_key(source), lambda path: quantize(source, exported, path)
        )

    def _find(self, name: str, key: str, write: Callable[[Path], None]) -> Path:
        folder = self._root / f"{name}-{key}"
        if _is_intact(folder):
            return folder / _FILE
        if folder.exists():
            logger.warning("exported graph is damaged and will be made again: %s", folder)
        try:
            self._make(name, folder, write)
        except OSError as error:
            raise GraphStoreError(
                f"cannot keep exported graphs in {self._root}: {error.strerror or error}"
            ) from error
        return folder / _FILE

    def _make(self, name: str, folder: Path, write: Callable[[Path], None]) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL_PREFIX, dir=self._root))
        try:
            logger.info("exporting %s, once for this model: up to a minute", name)
            started = time.monotonic()
            write(partial / _FILE)
            _write_manifest(partial)
            _install(partial, folder)
            logger.info("exported %s in %.1f s", name, time.monotonic() - started)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _remove_abandoned(self) -> None:
        """Clear what a killed process left; a younger folder may still be written to."""
        for partial in self._root.glob(f"{_PARTIAL_PREFIX}*"):
            if time.time() - partial.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(partial, ignore_errors=True)


def graph_key(source: GraphSource) -> str:
    """Digest of what decides the exported file, 24 hexadecimal digits."""
    return _key(_float_parts(source))


def quantized_key(source: GraphSource) -> str:
    """The same for its twin in 8 bits."""
    assert source.calibration is not None, f"{source.name} has no calibration"
    parts = {**_float_parts(source), "precision": "int8"}
    return _key({**parts, "quantizer": quantizer_identity(source.calibration)})


def _float_parts(source: GraphSource) -> dict[str, object]:
    return {
        "name": source.name,
        "revision": source.revision,
        "precision": "float32",
        "inputs": [
            [name, [None if axis in axes else size for axis, size in enumerate(example.shape)]]
            for name, example, axes in zip(
                source.input_names, source.example_inputs, source.dynamic_axes, strict=True
            )
        ],
        "exporter": exporter_versions(),
    }


def _key(parts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


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
    digests = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps({"sha256": digests}, indent=1))


def _is_intact(folder: Path) -> bool:
    try:
        digests = json.loads((folder / _MANIFEST).read_text())["sha256"]
        return _FILE in digests and all(
            _digest(folder / name) == digest for name, digest in digests.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
