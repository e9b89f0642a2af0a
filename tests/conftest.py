"""Settings of the whole test run.

Tests draw tiny tensors: one thread each is faster than the coordination of several, and several
processes of the suite share the machine. No test depends on how fast that machine is.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.postgresql import PostgresServer

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job; the processes that are tested would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("limner", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("limner")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """A server for the whole run. A test that needs it fails where it cannot start."""
    with PostgresServer.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of SQLite and of PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/test.db"
    server: PostgresServer = request.getfixturevalue("postgresql")
    return server.create_database()


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the SD 1.x architecture, untrained. Not to be written to."""
    # Most tests need no torch.
    from tests.diffusion.tiny import write_plain_model

    return write_plain_model(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures to train on. Not to be written to."""
    from tests.trainer.run.runs import write_photos

    return write_photos(tmp_path_factory.mktemp("photos"))
