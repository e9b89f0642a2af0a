"""How many threads torch computes with beside the runtimes that compute for it.

Called by the servers, once their models are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch


class RunsGraphs(Protocol):
    """A model that knows what its graphs run on."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        ...

    @property
    def runtimes(self) -> Mapping[str, str]:
        """What each component runs on, for example `{"denoiser": "openvino-bfloat16"}`."""
        ...


def settle_torch_threads(models: Sequence[RunsGraphs]) -> None:
    """Keep torch to one thread where none of `models` computes in torch on the CPU.

    What is left to torch then is small, and on a busy machine waiting for a second thread costs
    a scheduler's time slice, longer than a denoiser call. Called once, after the last load.
    """
    runtimes = [name for model in models for name in model.runtimes.values()]
    if all(model.device == "cpu" for model in models) and not any(
        name.startswith("torch") for name in runtimes
    ):
        torch.set_num_threads(1)
