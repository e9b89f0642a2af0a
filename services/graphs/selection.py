"""Chooses what a component runs on.

Services call `open_graph` for each of their components. The order behind `auto` was measured
(`docs/measurements.md`, `python -m benchmarks.denoiser`): on a CPU OpenVINO in the processor's
own precision, then torch; on CUDA torch in half precision.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from services.graphs.graph import (
    DeviceName,
    Graph,
    GraphError,
    GraphSource,
    Precision,
    RuntimeName,
)
from services.graphs.onnxruntime_graph import OnnxRuntimeGraph
from services.graphs.openvino_graph import OpenVinoGraph, native_precision
from services.graphs.store import GraphStore
from services.graphs.tensorrt.graph import TensorRtGraph
from services.graphs.tensorrt.store import EngineStore
from services.graphs.torch_graph import TorchGraph

logger = logging.getLogger(__name__)

_SPECIALISED_BYTES = 64 * 2**20
"""Largest exported graph of which some for fixed sizes are made: each holds its own weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphOptions:
    """What a process has to run graphs with."""

    runtime: RuntimeName
    device: str
    """Torch device, `cpu` or `cuda`, see `resolve_device`."""
    thread_count: int
    store: GraphStore
    compiled: bool = False
    """Run torch graphs on CUDA through `torch.compile`."""
    eight_bit: bool = False
    """Run components that have a calibration with 8-bit convolutions; needs OpenVINO."""


def resolve_device(device: DeviceName, runtime: RuntimeName) -> str:
    """Device that a setting stands for: `cpu` or `cuda`.

    Raises `GraphError` for CUDA where there is none, or with a runtime for CPUs.
    """
    is_cpu_runtime = runtime in ("onnxruntime", "openvino")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() and not is_cpu_runtime else "cpu"
    if device == "cuda" and is_cpu_runtime:
        raise GraphError(f"runtime {runtime} is for CPUs; CUDA needs runtime torch or auto")
    if device == "cuda" and not torch.cuda.is_available():
        raise GraphError("device cuda was asked for, but torch finds no CUDA device")
    return device


def available_core_count() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_graph(source: GraphSource, options: GraphOptions) -> Graph:
    """Make `source` ready to run; minutes at worst, for a first export of a full-size denoiser.

    Raises `GraphError`. With runtime `auto`, what stands in the way of OpenVINO is logged as a
    warning instead, and torch takes over; not where 8 bits were asked for.
    """
    if options.eight_bit:
        return _eight_bit(source, options)
    if options.runtime == "tensorrt":
        return TensorRtGraph(source, engine_store(options.store))
    if options.device == "cuda":
        return TorchGraph(
            source,
            device="cuda",
            precision=_fastest(source, "float16", "bfloat16"),
            compiled=options.compiled,
        )
    match options.runtime:
        case "torch":
            return TorchGraph(source, device="cpu")
        case "onnxruntime":
            return OnnxRuntimeGraph(options.store.path(source), thread_count=options.thread_count)
        case "openvino":
            return _openvino(source, options)
        case "auto":
            return _openvino_or_torch(source, options)


def engine_store(graphs: GraphStore) -> EngineStore:
    """Where engines of the components in `graphs` are found, and built ahead of serving."""
    return EngineStore(graphs.root / "engines", graphs=graphs)


def _eight_bit(source: GraphSource, options: GraphOptions) -> Graph:
    if options.device != "cpu" or options.runtime not in ("auto", "openvino"):
        raise GraphError("8 bits are for runtime openvino on a CPU")
    return _openvino(source, options)


def _openvino(source: GraphSource, options: GraphOptions) -> Graph:
    quantized = options.eight_bit and source.calibration is not None
    path = options.store.quantized_path(source) if quantized else options.store.path(source)
    return OpenVinoGraph(
        path,
        precision=_fastest(source, native_precision()),
        quantized=quantized,
        thread_count=options.thread_count,
        row_shapes=source.row_shapes if is_worth_copies(path) else None,
    )


def is_worth_copies(path: Path) -> bool:
    """Whether the exported graph is so small that one for each of several sizes can be held.

    Counts the whole folder: the weights of a large graph lie in a file beside it.
    """
    size_bytes = sum(file.stat().st_size for file in path.parent.iterdir())
    return size_bytes <= _SPECIALISED_BYTES


def _openvino_or_torch(source: GraphSource, options: GraphOptions) -> Graph:
    try:
        return _openvino(source, options)
    except GraphError as error:
        logger.warning("%s runs in torch, several times slower: %s", source.name, error)
        return TorchGraph(source, device="cpu")


def _fastest(source: GraphSource, *preferred: Precision) -> Precision:
    return next((precision for precision in preferred if precision in source.precisions), "float32")
