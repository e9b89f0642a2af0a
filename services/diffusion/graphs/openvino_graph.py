"""Runs an exported component on OpenVINO's CPU plugin.

Measured the fastest on x86-64, and the one runtime whose rows come out bit for bit the same in
any batch (`docs/measurements.md`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from services.diffusion.graphs.graph import GraphError, Precision, RuntimeMissingError

_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}


def native_precision() -> Precision:
    """Fastest precision of this processor: bfloat16 where it has units for it, else float32.

    Raises `RuntimeMissingError` without the package.
    """
    abilities = _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bfloat16" if "BF16" in abilities else "float32"


class OpenVinoGraph:
    """A component on OpenVINO: inputs are shared with the caller, the output is copied once."""

    def __init__(self, path: Path, *, precision: Precision, thread_count: int) -> None:
        """Compile the graph for this processor; seconds for a full-size denoiser.

        Raises `RuntimeMissingError` without the package, `GraphError` for a file that OpenVINO
        does not accept.
        """
        openvino = _openvino()
        self.runtime = f"openvino-{precision}"
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": thread_count,
            # Pinned threads cannot move off a core that another process wants.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled = openvino.Core().compile_model(path, "CPU", options)
        except RuntimeError as error:
            raise GraphError(f"OpenVINO refuses {path}: {_first_line(error)}") from error
        self._request = compiled.create_infer_request()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the component once."""
        feeds = {index: tensor.numpy() for index, tensor in enumerate(inputs)}
        outputs = self._request.infer(feeds, share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs[0].copy())


def _openvino() -> ModuleType:
    """The package, without the telemetry that its import sends by default.

    Its sender posts to an analytics service from a process that it forks off this one, threads
    and all: grpc's threads crash in such a child. OpenVINO goes without where the sender's package
    cannot be imported, and has no other switch that holds for a process only.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise RuntimeMissingError(
            "runtime openvino needs a package: pip install openvino"
        ) from error
    return openvino  # type: ignore[no-any-return]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
