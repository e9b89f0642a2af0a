"""Muon: momentum whose every matrix is made orthogonal before it is applied.

Called by `loop` for the weights inside a network; embeddings, norms and biases stay with AdamW.
Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; the factor that gives updates
AdamW's size, so that both share one rate, is of Liu et al. 2025, "Muon is scalable for LLM
training". Unlike `torch.optim.Muon` it takes convolutions, as matrices of output channels by all
else. Legend: K matrices of one shape, M rows, N columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.recipe.parallel import Worker, pick_dtype

_ITERATION_COUNT = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ADAMW_SIZE = 0.2
"""Root mean square of AdamW's typical update, in units of its rate."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; decoupled weight decay. State: `momentum`.

    Making matrices orthogonal is a quarter of a small batch's work, so workers share it out.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        worker: Worker | None = None,
    ) -> None:
        """Raise ValueError for a parameter that is no matrix and no convolution."""
        parameters = list(parameters)
        if any(parameter.ndim < 2 for parameter in parameters):
            raise ValueError("Muon takes parameters of two dimensions or more")
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._worker = worker

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients; `closure` is not supported."""
        for group in self.param_groups:
            alike: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.flatten(1).shape].append(parameter)
            for shape, parameters in alike.items():
                updates = [self._momentum(p, group["momentum"]).flatten(1) for p in parameters]
                size = _ADAMW_SIZE * max(shape) ** 0.5
                for parameter, update in zip(parameters, self._orthogonal(updates), strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * size)

    def _orthogonal(self, updates: list[Tensor]) -> Tensor:
        """Each worker's share by itself, then all of them."""
        stack_KMN = torch.stack(updates)
        if self._worker is None:
            return orthogonalize(stack_KMN)
        result_KMN = torch.empty_like(stack_KMN, dtype=pick_dtype(stack_KMN.device))
        own = self._worker.own(result_KMN)
        if len(own):
            own.copy_(orthogonalize(self._worker.own(stack_KMN)))
        self._worker.exchange(result_KMN)
        return result_KMN

    def _momentum(self, parameter: nn.Parameter, decay: float) -> Tensor:
        """Nesterov's look ahead of the moving average of gradients."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"].lerp_(gradient, 1.0 - decay)
        return gradient.lerp(momentum, decay)


def orthogonalize(matrices_KMN: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: singular values end between 0.7 and 1.2.

    Five quintic Newton-Schulz iterations in the device's fast precision, as the answer is.
    """
    a, b, c = _COEFFICIENTS
    x = matrices_KMN.to(pick_dtype(matrices_KMN.device))
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATION_COUNT):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    orthogonal: Tensor = x.mT if is_tall else x
    return orthogonal
