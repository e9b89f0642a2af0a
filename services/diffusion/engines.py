"""Which engines a diffusion server with these settings needs; for `limner engines build`."""

from __future__ import annotations

from functools import partial

from services.diffusion.families.errors import ModelLoadError
from services.diffusion.families.loading import engine_sources
from services.diffusion.model import ModelSpec
from services.diffusion.settings import DiffusionSettings
from services.graphs.graph import GraphError, GraphSource
from services.graphs.store import GraphStore
from services.graphs.tensorrt.prebuilding import ModelSources
from services.runtime.settings import load


def models() -> list[ModelSources]:
    """The models of the environment's settings; trained ones run in torch."""
    return [
        ModelSources(
            name=spec.name,
            graphs=GraphStore(spec.cache_dir / "graphs"),
            load=partial(_sources, spec),
        )
        for spec in load(DiffusionSettings).model_specs()
    ]


def _sources(spec: ModelSpec) -> tuple[GraphSource, ...]:
    try:
        return engine_sources(spec)
    except ModelLoadError as error:
        raise GraphError(str(error)) from error
