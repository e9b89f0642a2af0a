"""Loads a model by its settings entry; called once for each model at start-up.

The one place that knows all families. It does not warm a model up: `LoadedModel.warm_up` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from services.diffusion.families import sd1
from services.diffusion.families.errors import ModelLoadError
from services.diffusion.families.files import locate
from services.diffusion.model import LoadedModel, ModelSpec
from services.graphs.graph import GraphError


def settle_torch_threads(models: Sequence[LoadedModel]) -> None:
    """Keep torch to one thread where none of `models` computes in torch on the CPU.

    What is left to torch then is small, and on a busy machine waiting for a second thread costs
    a scheduler's time slice, longer than a denoiser call. Called once, after the last load.
    """
    runtimes = [name for model in models for name in model.runtimes.values()]
    if all(model.device == "cpu" for model in models) and not any(
        name.startswith("torch") for name in runtimes
    ):
        torch.set_num_threads(1)


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load the model that `spec` names; blocks, for minutes where its graphs are new.

    Raises `ModelLoadError`, one line that names the model and says what to do about it.
    """
    try:
        return sd1.load(spec, locate(spec.path_or_hub_id))
    except ModelLoadError as error:
        raise type(error)(f"model {spec.name}: {error}") from error
    except GraphError as error:
        raise ModelLoadError(f"model {spec.name}: {error}") from error
