"""A component of a model as a pure function of tensors, whatever computes it.

Services describe the components of their models as `GraphSource`s; `selection.open_graph` turns one
into a `Graph` on a runtime. Nothing here knows what a denoiser or an upscaler is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from services.graphs.shapes import ShapeRange

Precision = Literal["float32", "bfloat16", "float16"]
PrecisionName = Literal["auto", "int8"]
"""What an operator may ask for: the processor's own precision, or convolutions in 8 bits."""
RuntimeName = Literal["auto", "torch", "onnxruntime", "openvino", "tensorrt"]
DeviceName = Literal["auto", "cpu", "cuda"]
Shape = tuple[int, ...]


class GraphError(Exception):
    """A graph cannot be made or run here; the message is one line for the operator.

    GraphError
    ├── RuntimeMissingError   the runtime's package is not installed
    ├── ExportError           the exporter does not understand the component
    └── GraphStoreError       the folder of exported graphs cannot be written (full, read-only)
    """


class RuntimeMissingError(GraphError):
    """The runtime's package is not installed."""


class ExportError(GraphError):
    """The exporter does not understand the component."""


class GraphStoreError(GraphError):
    """The folder of exported graphs cannot be written: full, read-only, not a folder."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """What a component is run on to learn the range of its activations, for 8 bits."""

    recipe: str
    """Names how the inputs come about, with a version: another recipe makes another graph."""
    inputs: Callable[[], Iterable[tuple[Tensor, ...]]]
    """Inputs as in use, in the order of `GraphSource.input_names`; called once, if at all."""
    rounds_outputs: bool = True
    """Whether what convolutions return is rounded to 8 bits as well, besides what they take."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GraphSource:
    """A component in torch, with what an exporter must know of it.

    `module` takes `len(input_names)` tensors by position, float32 or token ids, and returns one.
    """

    name: str
    """For example `denoiser`; names files and log lines."""
    revision: str
    """Digest of everything that the module computes with."""
    module: nn.Module
    input_names: tuple[str, ...]
    example_inputs: tuple[Tensor, ...]
    """One tensor an input, with sizes of dynamic axes that are not 1."""
    dynamic_axes: tuple[frozenset[int], ...]
    """For every input, the axes whose size may change from call to call."""
    precisions: frozenset[Precision] = frozenset({"float32"})
    """What it may compute in without visible harm; a runtime takes the fastest of these."""
    row_shapes: tuple[Shape, ...] | None = None
    """For every input, the shape of one row, without the first axis, that nearly all calls have.

    A runtime may compile a small component for just these sizes, beside one for any size. Absent:
    calls differ, or it would not be faster.
    """
    calibration: Calibration | None = None
    """For 8 bits, where the operator asks for them; absent: it never computes in 8 bits."""
    shape_ranges: tuple[ShapeRange, ...] | None = None
    """For every input, the sizes that it may have, for runtimes that compile for some; absent: it
    cannot run on those."""

    def __post_init__(self) -> None:
        if not len(self.input_names) == len(self.example_inputs) == len(self.dynamic_axes):
            raise ValueError(f"graph {self.name}: names, examples and axes differ in number")
        if self.row_shapes is not None and len(self.row_shapes) != len(self.input_names):
            raise ValueError(f"graph {self.name}: one row shape is needed for each input")
        for example, axes in zip(self.example_inputs, self.dynamic_axes, strict=True):
            if any(example.shape[axis] < 2 for axis in axes):
                raise ValueError(f"graph {self.name}: an exporter would fix an axis of size 1")


class Graph(Protocol):
    """A component ready to run; called from the device thread alone.

    Takes contiguous tensors on the graph's device, float32 or token ids, in the order of
    `GraphSource.input_names`, and returns a fresh tensor there that no later call writes to.
    """

    @property
    def runtime(self) -> str:
        """What computes it and in which precision, for example `openvino-bfloat16`."""
        ...

    @property
    def piece_sizes(self) -> tuple[int, ...]:
        """Row counts that calls of the usual shape are cut into; empty: they run whole."""
        ...

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the component once."""
        ...
