"""Loads a model by its settings entry; called once for each model at start-up.

The one place that knows all families. It does not warm a model up: `LoadedModel.warm_up` does.
`engine_sources` is for those who build engines before a server starts.
"""

from __future__ import annotations

from services.diffusion.families import sd1
from services.diffusion.families.errors import ModelLoadError
from services.diffusion.families.files import locate
from services.diffusion.model import LoadedModel, ModelSpec
from services.graphs.graph import GraphError, GraphSource


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


def engine_sources(spec: ModelSpec) -> tuple[GraphSource, ...]:
    """What a server with TensorRT compiles for `spec` when it starts. Raises `ModelLoadError`."""
    try:
        return sd1.engine_sources(locate(spec.path_or_hub_id))
    except ModelLoadError as error:
        raise type(error)(f"model {spec.name}: {error}") from error
