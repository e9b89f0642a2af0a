"""Builds the engines of a model before a server needs them.

A service says which models it would serve (`services.upscale.engines`, for example), and `limner
engines build` goes through them. An engine that is in the store is not built again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.graphs.graph import GraphSource
from services.graphs.selection import engine_store
from services.graphs.store import GraphStore
from services.graphs.tensorrt.binding import open_binding


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSources:
    """A model that a server would load."""

    name: str
    graphs: GraphStore
    """Where the server looks for exported graphs, and for engines beside them."""
    load: Callable[[], tuple[GraphSource, ...]]
    """Reads the weights; raises `GraphError` where that cannot be done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrebuiltEngine:
    """An engine that a server will find."""

    component: str
    gpu: str
    """Compute capability; empty: that of the GPU in this machine."""
    precision: str
    path: Path
    seconds: float
    """What it took, the export included; next to nothing for an engine that was there."""


def prebuild(model: ModelSources, *, gpus: Sequence[str] = ()) -> Iterator[PrebuiltEngine]:
    """Build every engine of `model`, for each of `gpus` one of its own: servers look for that.

    Without `gpus` for the GPU in this machine. Raises `GraphError`; without TensorRT at once.
    """
    open_binding()
    store = engine_store(model.graphs)
    for source in model.load():
        for gpu in gpus or ("",):
            started_at = time.monotonic()
            engine = store.engine(source, capabilities=(gpu,) if gpu else ())
            yield PrebuiltEngine(
                component=source.name,
                gpu=gpu,
                precision=engine.precision,
                path=engine.path,
                seconds=time.monotonic() - started_at,
            )
