"""The folder of engines: each is built once and found again by what it was built from.

An engine belongs to the digest of its exported file (weights and number format included), to the
sizes and GPUs that it was built for, and to the version of TensorRT that reads it. Beside it lies
what cannot be read from an engine without a GPU: its inputs and outputs.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from services.graphs.content_folder import content_folder, content_key, file_digest
from services.graphs.graph import GraphError, GraphSource, Precision
from services.graphs.store import GraphStore
from services.graphs.tensorrt.binding import Binding, open_binding
from services.graphs.tensorrt.build import EngineSpec, TensorInfo, build_engine
from services.graphs.tensorrt.precision import fastest_precision, in_precision

_ENGINE = "engine.plan"
_DESCRIPTION = "engine.json"

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredEngine:
    """A built engine on disk."""

    path: Path
    precision: Precision
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class EngineStore:
    """Engines under one folder, made from the exported files of a `GraphStore`."""

    def __init__(self, root: Path, *, graphs: GraphStore) -> None:
        """Use `root`, which is made when the first engine is."""
        self._root = root
        self._graphs = graphs

    def engine(self, source: GraphSource, *, capabilities: tuple[str, ...] = ()) -> StoredEngine:
        """The engine of `source` for GPUs of `capabilities`, built first if it is missing.

        Without capabilities it is for the GPU of this machine. Raises `RuntimeMissingError`
        without TensorRT, `EngineBuildError`, and what `GraphStore.path` raises.
        """
        binding = open_binding()
        if source.shape_ranges is None:
            raise GraphError(f"{source.name} does not say for which sizes an engine is built")
        precision = fastest_precision(source)
        spec = EngineSpec(shapes=source.shape_ranges, capabilities=tuple(sorted(capabilities)))
        gpus = spec.capabilities or (_capability_here(),)
        file = self._graphs.path(in_precision(source, precision))
        folder = self._root / f"{source.name}-{_key(binding, file, spec, gpus)}"
        content_folder(folder, lambda partial: _fill(partial, binding, file, spec))
        described = json.loads((folder / _DESCRIPTION).read_text())
        return StoredEngine(
            path=folder / _ENGINE,
            precision=precision,
            inputs=tuple(_info(each) for each in described["inputs"]),
            outputs=tuple(_info(each) for each in described["outputs"]),
        )


def _key(binding: Binding, file: Path, spec: EngineSpec, gpus: tuple[str, ...]) -> str:
    # The weights of a large component lie in files beside the exported one.
    digests = {each.name: file_digest(each) for each in sorted(file.parent.iterdir())}
    shapes = [asdict(shape) for shape in spec.shapes]
    return content_key([digests, shapes, list(gpus), binding.name, binding.version])


def _capability_here() -> str:
    import torch

    if not torch.cuda.is_available():
        raise GraphError("no GPU is here to build an engine for; name compute capabilities instead")
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def _fill(folder: Path, binding: Binding, file: Path, spec: EngineSpec) -> None:
    _LOGGER.info("building an engine from %s, once for this model: up to minutes", file)
    started_at = time.monotonic()
    engine = build_engine(binding, file, spec)
    (folder / _ENGINE).write_bytes(engine.data)
    described = {
        "package": binding.name,
        "version": binding.version,
        "capabilities": spec.capabilities,
        "shapes": [asdict(shape) for shape in spec.shapes],
        "inputs": [asdict(each) for each in engine.inputs],
        "outputs": [asdict(each) for each in engine.outputs],
    }
    (folder / _DESCRIPTION).write_text(json.dumps(described, indent=1))
    _LOGGER.info("built %s in %.1f s", folder.name, time.monotonic() - started_at)


def _info(described: dict[str, object]) -> TensorInfo:
    shape = described["shape"]
    assert isinstance(shape, list), "the manifest vouches for the file"
    return TensorInfo(
        name=str(described["name"]), dtype=str(described["dtype"]), shape=tuple(shape)
    )
