"""Runs an engine on the GPU, on torch's tensors and torch's stream.

Opened by the selection. Not tried yet for lack of a GPU: what is known to hold is what the builder
says of the engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from services.graphs.graph import GraphError, GraphSource
from services.graphs.tensorrt.binding import open_binding
from services.graphs.tensorrt.store import EngineStore

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
}


class TensorRtGraph:
    """A component as an engine; inputs are read where they are, the output is fresh memory."""

    piece_sizes = ()

    def __init__(self, source: GraphSource, store: EngineStore) -> None:
        """Build the engine if it is missing, and load it.

        Raises `GraphError` without TensorRT or a GPU, and for an engine that it does not read.
        """
        if not torch.cuda.is_available():
            raise GraphError("runtime tensorrt needs a GPU; there is none")
        binding = open_binding()
        stored = store.engine(source)
        assert source.shape_ranges is not None, "an engine was built for some"
        self.runtime = f"{binding.name}-{stored.precision}"
        self._ranges = source.shape_ranges
        self._inputs = stored.inputs
        (self._output,) = stored.outputs
        self._log = binding.log
        # An engine lives no longer than what read it.
        self._reader = binding.module.Runtime(binding.log)
        engine = self._reader.deserialize_cuda_engine(stored.path.read_bytes())
        if engine is None:
            raise GraphError(f"TensorRT does not read {stored.path}: {binding.log.last_error}")
        self._context: Any = engine.create_execution_context()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the component; more rows than the engine takes at once, in parts."""
        most = min(shapes.largest[0] for shapes in self._ranges)
        parts = zip(*(torch.split(tensor, most) for tensor in inputs), strict=True)
        outputs = [self._run(part) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _run(self, inputs: tuple[Tensor, ...]) -> Tensor:
        held = []
        for info, shapes, tensor in zip(self._inputs, self._ranges, inputs, strict=True):
            if not shapes.holds(tuple(tensor.shape)):
                raise GraphError(f"{info.name} of shape {tuple(tensor.shape)} is beyond the engine")
            own = tensor.to(device="cuda", dtype=_DTYPES[info.dtype]).contiguous()
            held.append(own)
            self._context.set_input_shape(info.name, tuple(own.shape))
            self._context.set_tensor_address(info.name, own.data_ptr())
        shape = tuple(self._context.get_tensor_shape(self._output.name))
        output = torch.empty(shape, dtype=_DTYPES[self._output.dtype], device="cuda")
        self._context.set_tensor_address(self._output.name, output.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise GraphError(f"TensorRT failed: {self._log.last_error}")
        # `held` may go now: torch hands its memory out again in the order of the same stream.
        return output
