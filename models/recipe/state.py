"""The full state of a training run, and how it is kept in one file.

Called by `loop`; the averaged weights are also read by every stage that builds on another. Does not
decide when to save.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.recipe.muon import Muon
from models.recipe.parallel import Worker
from models.recipe.plan import Plan

_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")
_NOT_HIDDEN = ("embeddings", "conv_in", "conv_out")
"""Parts of names: what turns input into features and features into output stays with AdamW."""


class State:
    """Weights, their moving average, optimizer moments, step and time of one run."""

    def __init__(
        self, modules: dict[str, nn.Module], plan: Plan, worker: Worker | None = None
    ) -> None:
        """Start at step 0 with the modules' present weights."""
        self.modules = modules
        self.parameters: dict[str, nn.Parameter] = {
            f"{name}.{key}": parameter
            for name, module in modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.ema = {key: p.detach().clone() for key, p in self.parameters.items()}
        self.optimizers = _build_optimizers(self.parameters, plan, worker)
        self.step = 0
        self.elapsed_s = 0.0
        self.cpu_s = 0.0

    def _parameters_of(self, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return [(key, p) for key, p in self.parameters.items() if id(p) in own]

    def update_ema(self, decay: float) -> None:
        """Move the average towards the weights; the decay is shorter while the run is young."""
        weight = 1.0 - min(decay, (1.0 + self.step) / (10.0 + self.step))
        live = [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.ema.values()), live, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the modules hold the averaged weights."""
        live = {key: p.detach().clone() for key, p in self.parameters.items()}
        self._put(self.ema)
        try:
            yield
        finally:
            self._put(live)

    def _put(self, weights: dict[str, Tensor]) -> None:
        for key, parameter in self.parameters.items():
            parameter.data.copy_(weights[key])

    def save_averaged(self, path: Path) -> None:
        """Write the averaged weights alone, float16, atomically; `load_ema` reads them."""
        tensors = {f"ema/{key}": t.half().contiguous().cpu() for key, t in self.ema.items()}
        self._write(tensors, path)

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        for key, parameter in self.parameters.items():
            tensors[f"live/{key}"] = parameter.detach()
            tensors[f"ema/{key}"] = self.ema[key]
            for optimizer in self.optimizers:
                moments = optimizer.state.get(parameter, {})
                tensors |= {f"{name}/{key}": moments[name] for name in _MOMENTS if name in moments}
        self._write({key: t.contiguous().cpu() for key, t in tensors.items()}, path)

    def _write(self, tensors: dict[str, Tensor], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ("step", "elapsed_s", "cpu_s")
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, {name: str(getattr(self, name)) for name in names})
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Continue from `path`; raises KeyError when it is of another architecture.

        Moments of another optimizer than the parameter's own are left behind.
        """
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            keys = set(file.keys())
            for key, parameter in self.parameters.items():
                parameter.data.copy_(file.get_tensor(f"live/{key}"))
                self.ema[key].copy_(file.get_tensor(f"ema/{key}"))
            for optimizer in self.optimizers:
                names = _MOMENTS[:2] if isinstance(optimizer, torch.optim.AdamW) else _MOMENTS[2:]
                for key, parameter in self._parameters_of(optimizer):
                    if f"{names[0]}/{key}" in keys:
                        optimizer.state[parameter] = {
                            "step": torch.tensor(float(metadata["step"]), device=parameter.device),
                            **{n: file.get_tensor(f"{n}/{key}").to(parameter) for n in names},
                        }
        self.step, self.elapsed_s = int(metadata["step"]), float(metadata["elapsed_s"])
        self.cpu_s = float(metadata.get("cpu_s", 0.0))


def _build_optimizers(
    parameters: Mapping[str, nn.Parameter], plan: Plan, worker: Worker | None
) -> tuple[torch.optim.Optimizer, ...]:
    def is_hidden(key: str) -> bool:
        return parameters[key].ndim > 1 and not any(part in key for part in _NOT_HIDDEN)

    hidden = [key for key in parameters if plan.muon and is_hidden(key)]
    others = [p for key, p in parameters.items() if key not in hidden]
    rate, decay = plan.learning_rate, plan.weight_decay
    adamw = torch.optim.AdamW(others, lr=rate, betas=plan.betas, weight_decay=decay, fused=True)
    if not hidden:
        return (adamw,)
    matrices = [parameters[key] for key in hidden]
    return adamw, Muon(matrices, lr=rate, weight_decay=decay, worker=worker)


def load_ema(path: Path, modules: dict[str, nn.Module]) -> int:
    """Put the averaged weights of a checkpoint into `modules`; returns its step."""
    with safe_open(path, "pt") as file:
        for name, module in modules.items():
            for key, parameter in module.named_parameters():
                stored = f"ema/{name}.{key}"
                if stored in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                    parameter.data.copy_(file.get_tensor(stored))
        return int(file.metadata()["step"])
