from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.diffusion.families.loading import load_model
from services.diffusion.model import LoadedModel, ModelSpec
from tests.diffusion.tiny import write_emoji_like_model, write_plain_model

Load = Callable[[Path], LoadedModel]


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def emoji_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_emoji_like_model(tmp_path_factory.mktemp("emoji"))


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Load a folder in torch on the CPU, the runtime that is compared with diffusers."""
    cache_dir = tmp_path_factory.mktemp("cache")

    def load_folder(folder: Path) -> LoadedModel:
        return load_model(
            ModelSpec(
                name="tiny",
                path_or_hub_id=str(folder),
                runtime="torch",
                device="cpu",
                cache_dir=cache_dir,
            )
        )

    return load_folder


@pytest.fixture(scope="session")
def plain_model(load: Load, plain_folder: Path) -> LoadedModel:
    return load(plain_folder)


@pytest.fixture(scope="session")
def emoji_model(load: Load, emoji_folder: Path) -> LoadedModel:
    return load(emoji_folder)
