"""Runs an exported component on OpenVINO's CPU plugin.

Measured the fastest on x86-64, and the one runtime whose rows come out bit for bit the same in
any batch (`docs/measurements.md`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.graphs.graph import GraphError, Precision, RuntimeMissingError, Shape

Array = NDArray[Any]
InferRequest = Any
"""`openvino.InferRequest`; the package may be absent."""

PIECE_SIZES = (16, 8, 4, 2, 1)
"""Rows of the graphs that are compiled for a fixed size, largest first."""

_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}


def native_precision() -> Precision:
    """Fastest precision of this processor: bfloat16 where it has units for it, else float32.

    Raises `RuntimeMissingError` without the package.
    """
    abilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bfloat16" if "BF16" in abilities else "float32"


class OpenVinoGraph:
    """A component on OpenVINO: inputs are shared with the caller, the output is copied once.

    With `row_shapes`, calls of those shapes run in pieces of `PIECE_SIZES` rows, on graphs compiled
    for exactly that many: OpenVINO fuses more where it knows every size (a denoiser of 9.6 M
    parameters takes 15 to 20 % less time), and a row is equal bit for bit in a piece of any size.
    Calls of other shapes run whole, on a graph for any size that the first of them compiles.
    """

    def __init__(
        self,
        path: Path,
        *,
        precision: Precision,
        thread_count: int,
        row_shapes: tuple[Shape, ...] | None = None,
        quantized: bool = False,
    ) -> None:
        """Compile the graph for this processor; seconds for a full-size denoiser.

        A `quantized` one says itself what it computes in 8 bits; `precision` is for the rest.
        `row_shapes` are the inputs' shapes without their first axis. Raises `RuntimeMissingError`
        without the package, `GraphError` for a file that OpenVINO does not accept.
        """
        self._core = _core()
        self.runtime = f"openvino-{'int8' if quantized else precision}"
        self._path = path
        self._row_shapes = row_shapes
        self._options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": thread_count,
            # Pinned threads cannot move off a core that another process wants.
            "ENABLE_CPU_PINNING": False,
        }
        self.piece_sizes = PIECE_SIZES if row_shapes is not None else ()
        with self._refusals():
            self._model = self._core.read_model(path)
            self._pieces = [(size, self._compile(size)) for size in self.piece_sizes]
            self._whole = None if self._pieces else self._compile(None)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the component once."""
        feeds = [tensor.numpy() for tensor in inputs]
        if self._pieces and tuple(feed.shape[1:] for feed in feeds) == self._row_shapes:
            return torch.from_numpy(self._run_pieces(feeds))
        return torch.from_numpy(self._run_whole(feeds))

    def _run_pieces(self, feeds: list[Array]) -> Array:
        row_count = len(feeds[0])
        output: Array | None = None
        done = 0
        for size, request in self._pieces:
            while row_count - done >= size:
                rows = slice(done, done + size)
                piece = _infer(request, [feed[rows] for feed in feeds])
                if output is None:
                    output = np.empty((row_count, *piece.shape[1:]), piece.dtype)
                output[rows] = piece
                done += size
        assert output is not None, "a graph is called with at least one row"
        return output

    def _run_whole(self, feeds: list[Array]) -> Array:
        if self._whole is None:
            with self._refusals():
                self._whole = self._compile(None)
        return _infer(self._whole, feeds).copy()

    def _compile(self, row_count: int | None) -> InferRequest:
        model = self._model.clone()
        if row_count is not None:
            assert self._row_shapes is not None
            shapes = [[row_count, *shape] for shape in self._row_shapes]
            model.reshape(dict(enumerate(shapes)))
        return self._core.compile_model(model, "CPU", self._options).create_infer_request()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise GraphError(f"OpenVINO refuses {self._path}: {_first_line(error)}") from error


def _infer(request: InferRequest, feeds: list[Array]) -> Array:
    """The first output; later calls of the request write over it."""
    outputs = request.infer(dict(enumerate(feeds)), share_inputs=True, share_outputs=True)
    return outputs[0]  # type: ignore[no-any-return]


@cache
def _core() -> Any:
    """The process's one `openvino.Core`, which lives until the process ends.

    Its CPU plugin gives the thread that loads it a signal stack of its own, where one was set (as
    `faulthandler` does), and unmaps that when the last graph goes, on whichever thread that is: the
    next signal then kills the process without a word (OpenVINO 2026.4).
    """
    return _openvino().Core()


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
