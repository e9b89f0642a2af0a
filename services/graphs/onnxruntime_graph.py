"""Runs an exported component on ONNX Runtime's CPU provider, in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from services.graphs.graph import GraphError, RuntimeMissingError


class OnnxRuntimeGraph:
    """A component on ONNX Runtime; inputs are shared, the output is the runtime's own memory."""

    runtime = "onnxruntime-float32"
    piece_sizes = ()

    def __init__(self, path: Path, *, thread_count: int) -> None:
        """Open the graph; raises `RuntimeMissingError` without the package."""
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeMissingError(
                "runtime onnxruntime needs a package: pip install onnxruntime"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = thread_count
        # Idle threads would spin beside those of the text encoder and of the server.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._input_names = [put.name for put in self._session.get_inputs()]
        state = onnxruntime.capi.onnxruntime_pybind11_state
        self._run_errors = (state.Fail, state.InvalidArgument, state.RuntimeException)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the component once."""
        feeds = {
            name: tensor.numpy() for name, tensor in zip(self._input_names, inputs, strict=True)
        }
        try:
            return torch.from_numpy(self._session.run(None, feeds)[0])
        except self._run_errors as error:
            raise GraphError(f"ONNX Runtime failed: {error}") from error
