from pathlib import Path

import pytest

from tests.diffusion.tiny import write_emoji_like_model
from tests.trainer.run.sd3 import write_sd3_model
from tests.trainer.run.sdxl import write_sdxl_model


@pytest.fixture(scope="session")
def emoji_like_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_emoji_like_model(tmp_path_factory.mktemp("emoji") / "model")


@pytest.fixture(scope="session")
def sdxl_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sdxl_model(tmp_path_factory.mktemp("sdxl") / "model")


@pytest.fixture(scope="session")
def sd3_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd3_model(tmp_path_factory.mktemp("sd3") / "model")
