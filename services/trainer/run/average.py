"""The exponential moving average of what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """An average that starts at the weights and follows them, faster while it is young."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights of optimizer step `step`, the first being 1."""
        decay = min(self._decay, (1.0 + step) / (10.0 + step))
        live = [parameter.detach() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self.tensors.values()), live, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the weights for the length of a block."""
        live = {name: parameter.data for name, parameter in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.data = self.tensors[name]
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = live[name]
