"""Full state of a run in one safetensors file that appears whole or not at all.

Called at optimizer-step boundaries by the first process. It holds what is trained, its moving
average, the optimizer's moments, the scaler of float16 and the position. There is no random state:
every draw is a function of the position (see `randomness`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from services.storage.durable import sync
from services.trainer.run.violations import RefusedError, violation

_KEY = "limner"
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "lightning")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What must be equal for a continuation to be exact."""

    fingerprint: str
    """Digest of base model, data and configuration."""
    world_size: int
    versions: dict[str, str]

    @classmethod
    def of(cls, fingerprint: str, world_size: int) -> Identity:
        """The identity of a run in this very environment."""
        versions = {package: version(package) for package in _PACKAGES}
        return cls(fingerprint=fingerprint, world_size=world_size, versions=versions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far a run is."""

    step: int = 0
    """Optimizer steps done."""
    best_loss: float | None = None
    """Smallest validation loss so far."""
    best_step: int | None = None
    scaler: dict[str, float | int] | None = None
    """State of the gradient scaler; float16 only."""


def save_checkpoint(
    path: Path,
    *,
    identity: Identity,
    position: Position,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor] | None,
) -> None:
    """Write everything to `path`, atomically and through to the disk."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weights/{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}/{name}"] = torch.as_tensor(value)
    for name, value in (average or {}).items():
        tensors[f"average/{name}"] = value
    # One entry: the format keeps several in no particular order.
    header = {_KEY: json.dumps({"identity": asdict(identity), "position": asdict(position)})}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        save_file(_apart(tensors), partial, header)
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # a full disk is not to be kept full
    sync(path.parent)


def read_position(path: Path, identity: Identity) -> Position | None:
    """Position of the checkpoint at `path`, None where there is none.

    Raises `RefusedError` where it belongs to another run or environment, or cannot be read.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()[_KEY])
        found, position = dict(header["identity"]), Position(**header["position"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RefusedError([violation("output", "BAD_CHECKPOINT", f"{path}: {error}")]) from error
    wanted = asdict(identity)
    other = [name for name in wanted if found.get(name) != wanted[name]]
    if other:
        raise RefusedError(
            [
                violation(
                    "output",
                    "OTHER_RUN",
                    f"{path} was made with another {name.replace('_', ' ')} "
                    f"({found.get(name)}, now {wanted[name]}), so that the run cannot be "
                    "continued exactly; choose another folder to start anew",
                )
                for name in other
            ]
        )
    return position


def load_weights(
    path: Path, parameters: Mapping[str, nn.Parameter], average: Mapping[str, Tensor] | None
) -> None:
    """Put the weights of a checkpoint, and the average where there is one, in place."""
    with torch.no_grad(), safe_open(path, "pt") as file:
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"weights/{name}"))
        for name, value in (average or {}).items():
            value.copy_(file.get_tensor(f"average/{name}"))


def load_optimizer(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Put the optimizer's moments of a checkpoint in place."""
    by_name: dict[str, dict[str, Any]] = {name: {} for name in parameters}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            kind, _, name = key.partition("/")
            if kind.startswith("optimizer."):
                value = file.get_tensor(key)
                by_name[name][kind.removeprefix("optimizer.")] = (
                    value.to(parameters[name].device) if value.ndim else _count(value, optimizer)
                )
    for name, state in by_name.items():
        if state:
            optimizer.state[parameters[name]] = state


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, none in the memory of another: parameters share the tables of 8-bit moments."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        kept = tensor.contiguous().cpu()
        apart[name] = kept.clone() if kept.data_ptr() in taken else kept
        taken.add(kept.data_ptr())
    return apart


def _count(value: Tensor, optimizer: torch.optim.Optimizer) -> Tensor | int:
    """A step count as the optimizer keeps it: torch's as a number with a fraction, on the device
    where it is fused, and bitsandbytes' as an integer."""
    if not value.is_floating_point():
        return int(value)
    fused = bool(optimizer.defaults.get("fused"))
    return value.to(optimizer.param_groups[0]["params"][0].device) if fused else value
