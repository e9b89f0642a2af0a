from __future__ import annotations

from pathlib import Path

import pytest

from services.diffusion.families.sd1.components import load_components
from services.diffusion.families.sd1.layout import Layout, read_layout
from services.diffusion.families.sd1.sources import decoder_source, denoiser_source
from services.graphs.graph import GraphSource
from services.graphs.store import GraphStore
from tests.diffusion.tiny import shared_cache, write_emoji_like_model


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return read_layout(write_emoji_like_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return GraphStore(shared_cache(tmp_path_factory.getbasetemp()) / "graphs")


@pytest.fixture(scope="session")
def denoiser(layout: Layout) -> GraphSource:
    return denoiser_source(layout, load_components(layout).unet)


@pytest.fixture(scope="session")
def decoder(layout: Layout) -> GraphSource:
    return decoder_source(layout, load_components(layout).vae)


@pytest.fixture(scope="session")
def denoiser_file(store: GraphStore, denoiser: GraphSource) -> Path:
    return store.path(denoiser)


@pytest.fixture(scope="session")
def decoder_file(store: GraphStore, decoder: GraphSource) -> Path:
    return store.path(decoder)
