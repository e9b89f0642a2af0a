"""A component that computes in half precision behind the same inputs and output.

TensorRT takes the number format from the exported file, so that a component is converted before it
is exported. Called before an engine's source is looked up or built.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from services.graphs.graph import GraphSource, Precision

_PREFERRED: tuple[Precision, ...] = ("float16", "bfloat16", "float32")
_DTYPES: dict[Precision, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def fastest_precision(source: GraphSource) -> Precision:
    """What an engine of `source` computes in: half precision where the component allows it."""
    return next(each for each in _PREFERRED if each in source.precisions)


def in_precision(source: GraphSource, precision: Precision) -> GraphSource:
    """`source` computing in `precision` behind its own inputs and output; it is left as it is."""
    dtype = _DTYPES.get(precision)
    if dtype is None:
        return source
    module = copy.deepcopy(source.module).to(dtype)
    module.register_forward_pre_hook(
        lambda _, inputs: tuple(_converted(each, dtype) for each in inputs)
    )
    module.register_forward_hook(lambda _, __, output: _restored(output))
    return replace(source, revision=f"{source.revision}-{precision}", module=module)


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Timesteps, the only vectors, keep float32: in half precision neighbours would merge.
    keeps = tensor.ndim == 1 or not tensor.is_floating_point()
    return tensor if keeps else tensor.to(dtype)


def _restored(output: Tensor) -> Tensor:
    return output.float() if output.is_floating_point() else output
