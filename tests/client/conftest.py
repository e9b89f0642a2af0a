from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from services.client import Client
from services.client.cli.app import run
from tests.client.scripted_server import ScriptedServer

Limner: TypeAlias = Callable[..., int]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIMNER_ADDRESS", "LIMNER_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.address, timeout_s=30) as client:
        yield client


@pytest.fixture
def limner(server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Limner:
    """Runs a command line in an empty folder, against the scripted server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMNER_ADDRESS", server.address)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run(list(arguments))
