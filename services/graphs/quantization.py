"""Puts the convolutions of an exported graph into 8 bits, which a processor multiplies faster.

Called by the store. Weights are scaled by output channel, activations by the range that they have
on the calibration's inputs; all else keeps its precision. Faster where the
processor has VNNI, at the cost of an error that has to be measured model by model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from services.graphs.graph import Calibration, ExportError, GraphSource, RuntimeMissingError

_LARGEST_BYTES = 2**30
"""Larger graphs have their weights in a second file, which the quantizer does not rewrite."""
_MISSING = "graphs in 8 bits need a package: pip install 'limner[int8]'"


def quantizer_identity(calibration: Calibration) -> dict[str, str]:
    """Everything besides the float32 graph that decides what the file contains.

    Raises `RuntimeMissingError` without ONNX Runtime, whose quantizer it is.
    """
    try:
        identity = {"calibration": calibration.recipe, "onnxruntime": version("onnxruntime")}
    except PackageNotFoundError as error:
        raise RuntimeMissingError(_MISSING) from error
    return identity if calibration.rounds_outputs else {**identity, "outputs": "unrounded"}


def quantize(source: GraphSource, exported: Path, path: Path) -> None:
    """Write the graph in `exported` to `path` with 8-bit convolutions.

    Runs it on every input of the calibration. Raises `ExportError` for a source without one and
    for a graph above 1 GiB.
    """
    if source.calibration is None:
        raise ExportError(f"{source.name} has nothing to be calibrated with for 8 bits")
    if sum(file.stat().st_size for file in exported.parent.iterdir()) > _LARGEST_BYTES:
        raise ExportError(f"{source.name} is too large for 8 bits: more than 1 GiB")
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    unrounded = [] if source.calibration.rounds_outputs else ["Conv"]
    prepared = path.with_suffix(".prepared")
    with _quiet():
        shape_inference.quant_pre_process(exported, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            path,
            _reader(quantization, source.input_names, source.calibration.inputs()),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": unrounded},
        )
    prepared.unlink()


def _reader(quantization: Any, names: tuple[str, ...], inputs: Iterable[tuple[Tensor, ...]]) -> Any:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = (
                {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
                for tensors in inputs
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice, which it gives on the root logger itself, off the log."""
    root = logging.getLogger()
    root.addFilter(_refuse)
    try:
        yield
    finally:
        root.removeFilter(_refuse)


def _refuse(_: logging.LogRecord) -> bool:
    return False
