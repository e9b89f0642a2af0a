"""The folder of exported graphs: each is made once and found again by what it was made from.

`path` is what the selection calls. A graph lies in a folder of its own, named by its key, see
`content_folder`; two processes may share a store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from services.graphs.content_folder import content_folder, content_key
from services.graphs.export import export, exporter_versions
from services.graphs.graph import GraphSource
from services.graphs.quantization import quantize, quantizer_identity

_FILE = "model.onnx"

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
        def fill(folder: Path) -> None:
            logger.info("exporting %s, once for this model: up to a minute", name)
            started = time.monotonic()
            write(folder / _FILE)
            logger.info("exported %s in %.1f s", name, time.monotonic() - started)

        return content_folder(self._root / f"{name}-{key}", fill) / _FILE


def graph_key(source: GraphSource) -> str:
    """Digest of what decides the exported file, 24 hexadecimal digits."""
    return content_key(_float_parts(source))


def quantized_key(source: GraphSource) -> str:
    """The same for its twin in 8 bits."""
    assert source.calibration is not None, f"{source.name} has no calibration"
    parts = {**_float_parts(source), "precision": "int8"}
    return content_key({**parts, "quantizer": quantizer_identity(source.calibration)})


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
