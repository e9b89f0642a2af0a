"""Which engines an upscale server with these settings needs; for `limner engines build`."""

from __future__ import annotations

from functools import partial

from services.graphs.graph import GraphError, GraphSource
from services.graphs.store import GraphStore
from services.graphs.tensorrt.prebuilding import ModelSources
from services.runtime.settings import load
from services.upscale.loading import engine_sources
from services.upscale.model import DeviceOptions
from services.upscale.server import choose_entries
from services.upscale.settings import UpscaleSettings
from services.upscale.weights.errors import UpscalerLoadError
from services.upscale.weights.library import Entry


def models() -> list[ModelSources]:
    """The models of the environment's settings. Raises `GraphError` where they are not here."""
    settings = load(UpscaleSettings)
    options = settings.device_options()
    try:
        entries = choose_entries(settings)
    except UpscalerLoadError as error:
        raise GraphError(str(error)) from error
    return [
        ModelSources(
            name=entry.name,
            graphs=GraphStore(options.cache_dir / "graphs"),
            load=partial(_sources, entry, options),
        )
        for entry in entries
    ]


def _sources(entry: Entry, options: DeviceOptions) -> tuple[GraphSource, ...]:
    try:
        return engine_sources(entry, options)
    except UpscalerLoadError as error:
        raise GraphError(str(error)) from error
