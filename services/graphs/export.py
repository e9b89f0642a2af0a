"""Writes a component as an ONNX file with dynamic batch and size.

Called by the store alone. One file serves every batch size, picture size and timestep.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.onnx.errors import OnnxExporterError

from services.graphs.graph import ExportError, GraphSource

OPSET = 18

_EXPORTERS = ("torch", "onnx", "onnxscript", "diffusers")
_CHATTY_LOGGERS = ("onnx_ir", "onnxscript", "torch.onnx")


def exporter_versions() -> dict[str, str]:
    """Everything besides the component itself that decides what the file contains."""
    return {"opset": str(OPSET), **{name: version(name) for name in _EXPORTERS}}


def export(source: GraphSource, path: Path) -> None:
    """Write `source` to `path` in float32; weights beyond 2 GB go to a second file beside it.

    Takes half a minute for a denoiser. Raises `ExportError` where the exporter gives up, and
    `OSError` where the file cannot be written.
    """
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                source.module.eval(),
                source.example_inputs,
                dynamo=True,
                opset_version=OPSET,
                optimize=True,
                input_names=source.input_names,
                output_names=["output"],
                dynamic_shapes=tuple(map(_dynamic, source.example_inputs, source.dynamic_axes)),
                verbose=False,
            )
        except OnnxExporterError as error:
            first_line = str(error).strip().splitlines()[0]
            raise ExportError(f"cannot export {source.name} to ONNX: {first_line}") from error
        if program is None:
            raise ExportError(f"cannot export {source.name} to ONNX: the exporter gave no program")
        program.save(path)


def _dynamic(_: Tensor, axes: frozenset[int]) -> dict[int, object]:
    return {axis: torch.export.Dim.DYNAMIC for axis in sorted(axes)}


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep a thousand remarks of the exporter about itself off the log."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
