"""How many threads torch computes with beside the runtimes that compute for it.

Called by the servers, once their models are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from services.runtime.device_model import DeviceModel


def settle_torch_threads(models: Sequence[DeviceModel]) -> None:
    """Keep torch to one thread where none of `models` computes in torch on the CPU.

    What is left to torch then is small, and on a busy machine waiting for a second thread costs
    a scheduler's time slice, longer than a denoiser call. Called once, after the last load.
    """
    runtimes = [name for model in models for name in model.runtimes.values()]
    if all(model.device == "cpu" for model in models) and not any(
        name.startswith("torch") for name in runtimes
    ):
        torch.set_num_threads(1)
