"""Compiles an exported component into a TensorRT engine.

Called by the store. Precision comes from the file: networks are strongly typed. What an engine is
built for, sizes and GPUs, is in its `EngineSpec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.graphs.graph import GraphError
from services.graphs.shapes import ShapeRange
from services.graphs.tensorrt.binding import Binding


class EngineBuildError(GraphError):
    """TensorRT does not accept the exported component, or cannot build for these sizes or GPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """What an engine is built for."""

    shapes: tuple[ShapeRange, ...]
    """For each input, in the order of the file."""
    capabilities: tuple[str, ...]
    """Compute capabilities of the GPUs, for example `8.9`; empty: the one in this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """An input or output of an engine."""

    name: str
    dtype: str
    """For example `FLOAT`."""
    shape: tuple[int, ...]
    """-1 where the size may change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """A serialised engine, and what can no longer be read from it without a GPU."""

    data: bytes
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def build_engine(binding: Binding, path: Path, spec: EngineSpec) -> Engine:
    """Compile the ONNX file; a second for a small component, minutes for a full-size denoiser.

    Raises `EngineBuildError`.
    """
    trt = binding.module
    builder = trt.Builder(binding.log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, binding.log)
    if not parser.parse_from_file(str(path)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise EngineBuildError(f"TensorRT does not accept {path}: {'; '.join(reasons)}")
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, spec))
    _target(binding, config, spec)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise EngineBuildError(f"TensorRT cannot build {path}: {binding.log.last_error}")
    return Engine(
        data=bytes(data),
        inputs=tuple(_info(network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_info(network.get_output(i)) for i in range(network.num_outputs)),
    )


def _profile(builder: Any, network: Any, spec: EngineSpec) -> Any:
    """Sizes that the engine takes, and those that it is made fastest for."""
    if network.num_inputs != len(spec.shapes):
        raise EngineBuildError(
            f"the component has {network.num_inputs} inputs, {len(spec.shapes)} are described"
        )
    profile = builder.create_optimization_profile()
    for index, shape in enumerate(spec.shapes):
        profile.set_shape(network.get_input(index).name, shape.smallest, shape.usual, shape.largest)
    return profile


def _target(binding: Binding, config: Any, spec: EngineSpec) -> None:
    if not spec.capabilities:
        return
    if not binding.chooses_gpus:
        raise EngineBuildError(
            f"{binding.name} builds for the GPU of the machine; only tensorrt_rtx takes others"
        )
    known = binding.module.ComputeCapability
    targets = [getattr(known, f"SM{each.replace('.', '')}", None) for each in spec.capabilities]
    if None in targets:
        unknown = spec.capabilities[targets.index(None)]
        raise EngineBuildError(f"{binding.name} cannot build for compute capability {unknown}")
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(target, index)


def _info(tensor: Any) -> TensorInfo:
    return TensorInfo(name=tensor.name, dtype=tensor.dtype.name, shape=tuple(tensor.shape))
