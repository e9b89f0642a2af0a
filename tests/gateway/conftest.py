"""A database of the gateway for each test, on SQLite and on PostgreSQL; what a training needs."""

from pathlib import Path

import pytest

from services.gateway.schema import migrate
from services.storage.database import open_engine
from tests.diffusion.tiny import write_plain_model
from tests.trainer.run.runs import write_photos


@pytest.fixture
async def engine(database_url: str):
    """A database with the newest schema."""
    opened = open_engine(database_url)
    await migrate(opened)
    yield opened
    await opened.dispose()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that trainings start from."""
    return write_plain_model(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures to train on."""
    return write_photos(tmp_path_factory.mktemp("photos"))
