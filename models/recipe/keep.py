"""Keeps a training in the repository, in 8 bits a weight, and takes it up on another machine.

Called by the command line. Only averaged weights are kept: the optimizers' moments, twice as large,
come back within some hundred steps. Drawings and latents are made anew. Does not train.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.recipe import autoencoder
from models.recipe.workdir import WorkDir

_FILE = "weights.safetensors"
_LEVELS = 127.0
_SCALE = "@scale"


def keep(work: WorkDir, folder: Path) -> None:
    """Write the tokenizer and the averaged weights of autoencoder, text encoder and denoiser.

    Raises FileNotFoundError when a stage has not begun.
    """
    tensors: dict[str, Tensor] = {}
    clocks: dict[str, str] = {}
    for name, path in _checkpoints(work).items():
        with safe_open(path, "pt") as file:
            clocks[name] = json.dumps(file.metadata())
            for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                if key.startswith("ema/"):
                    weights = file.get_tensor(key)
                    tensors |= shrink(f"{name}/{key.removeprefix('ema/')}", weights)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(work.tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    partial = folder / f".{_FILE}"
    save_file(tensors, partial, clocks)
    os.replace(partial, folder / _FILE)
    (folder / _FILE).chmod(0o644)


def take_up(folder: Path, work: WorkDir) -> None:
    """Write checkpoints that the stages go on from; the autoencoder counts as done.

    Raises FileExistsError, and writes nothing, when the work folder has begun a training.
    """
    checkpoints = _checkpoints(work)
    for path in checkpoints.values():
        if path.exists():
            raise FileExistsError(f"{path} is there already: remove it to take up another")
    work.root.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "tokenizer", work.tokenizer, dirs_exist_ok=True)
    with safe_open(folder / _FILE, "pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        clocks = file.metadata()
    for name, path in checkpoints.items():
        weights = restored(kept, f"{name}/")
        live = {f"live/{key}": tensor for key, tensor in weights.items()}
        averaged = {f"ema/{key}": tensor.clone() for key, tensor in weights.items()}
        save_file(live | averaged, path, json.loads(clocks[name]))


def shrink(key: str, weights: Tensor) -> dict[str, Tensor]:
    """Matrices and convolutions as int8 with a scale a row, all else in float16."""
    if weights.ndim < 2:
        return {key: weights.half()}
    rows = weights.float().flatten(1)
    scales = rows.abs().amax(1, keepdim=True).clamp(min=1e-8) / _LEVELS
    levels = (rows / scales).round().to(torch.int8).view(weights.shape)
    return {key: levels, f"{key}{_SCALE}": scales[:, 0].clone()}


def restored(kept: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights in float32 by their names without `prefix`."""
    result = {}
    for key, stored in kept.items():
        if not key.startswith(prefix) or key.endswith(_SCALE):
            continue
        weights = stored.float()
        if f"{key}{_SCALE}" in kept:
            weights = weights * kept[f"{key}{_SCALE}"].view(-1, *[1] * (weights.ndim - 1))
        result[key.removeprefix(prefix)] = weights
    return result


def _checkpoints(work: WorkDir) -> dict[str, Path]:
    return {
        "autoencoder": work.autoencoder(len(autoencoder.PHASES)),
        "text": work.text,
        "denoiser": work.denoiser,
    }
