"""Takes a training up where the shipped model has it, on a machine that has nothing of it.

Called by the command line. The folder of the model holds all weights but the map from drawings to
codes, which does not ship, and the head of the text stage: these are kept beside the recipe with
the rest of the text encoder, in 8 bits a weight. Optimizers' moments come back within some hundred
steps; drawings and latents are made anew. Does not train.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.recipe import autoencoder, denoiser
from models.recipe.libraries import AutoencoderTiny, UNet2DConditionModel
from models.recipe.workdir import WorkDir

_LEVELS = 127.0
_SCALE = "@scale"


def keep(work: WorkDir, path: Path) -> None:
    """Write the text encoder's averaged weights, and how far every stage has got.

    Raises FileNotFoundError when a stage has not begun.
    """
    clocks: dict[str, str] = {}
    for name, checkpoint in _checkpoints(work).items():
        with safe_open(checkpoint, "pt") as file:
            clocks[name] = json.dumps(file.metadata())
    tensors: dict[str, Tensor] = {}
    with safe_open(work.text, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            if key.startswith("ema/"):
                tensors |= shrink(key.removeprefix("ema/"), file.get_tensor(key))
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, clocks)
    partial.chmod(0o644)
    os.replace(partial, path)


def take_up(model: Path, path: Path, work: WorkDir) -> None:
    """Write tokenizer and checkpoints that the stages go on from; autoencoder and text are done.

    Raises FileExistsError, and writes nothing, when the work folder has begun a training.
    """
    checkpoints = _checkpoints(work)
    for checkpoint in checkpoints.values():
        if checkpoint.exists():
            raise FileExistsError(f"{checkpoint} is there already: remove it to take up another")
    with safe_open(path, "pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        clocks = file.metadata()
    weights = {
        "autoencoder": _named(
            autoencoder.as_modules(AutoencoderTiny.from_pretrained(model / "vae"))
        ),
        "text": restored(kept),
        "denoiser": _named(
            denoiser.as_modules(UNet2DConditionModel.from_pretrained(model / "unet"))
        ),
    }
    work.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work.root) as scratch:
        for name, tensors in weights.items():
            live = {f"live/{key}": tensor for key, tensor in tensors.items()}
            averaged = {f"ema/{key}": tensor.clone() for key, tensor in tensors.items()}
            save_file(live | averaged, Path(scratch) / name, json.loads(clocks[name]))
        shutil.copytree(model / "tokenizer", work.tokenizer, dirs_exist_ok=True)
        for name, checkpoint in checkpoints.items():
            os.replace(Path(scratch) / name, checkpoint)


def shrink(key: str, weights: Tensor) -> dict[str, Tensor]:
    """Matrices and convolutions as int8 with a scale a row, all else in float16."""
    if weights.ndim < 2:
        return {key: weights.half()}
    rows = weights.float().flatten(1)
    scales = rows.abs().amax(1, keepdim=True).clamp(min=1e-8) / _LEVELS
    levels = (rows / scales).round().to(torch.int8).view(weights.shape)
    return {key: levels, f"{key}{_SCALE}": scales[:, 0].clone()}


def restored(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32 by their names."""
    result = {}
    for key, stored in kept.items():
        if key.endswith(_SCALE):
            continue
        weights = stored.float()
        if f"{key}{_SCALE}" in kept:
            weights = weights * kept[f"{key}{_SCALE}"].view(-1, *[1] * (weights.ndim - 1))
        result[key] = weights
    return result


def _named(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": parameter.detach().float().contiguous()
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
    }


def _checkpoints(work: WorkDir) -> dict[str, Path]:
    return {
        "autoencoder": work.autoencoder(len(autoencoder.PHASES)),
        "text": work.text,
        "denoiser": work.denoiser,
    }
