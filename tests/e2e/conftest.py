from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.local.ports import free_port
from services.local.settings import plan_suite
from tests.e2e.running_suite import ROOT, START_TIMEOUT_S, RunningSuite, running_suite

_EMBEDDED_MODEL = ROOT / "models" / "limner-emoji"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test of a session the time that a cold start may take."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(START_TIMEOUT_S + 180))


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """What all processes of these tests share: a graph is exported once, for later runs too."""
    return {
        "LIMNER_DIFFUSION_CACHE_DIR": str(ROOT / ".cache" / "limner"),
        "LIMNER_DIFFUSION_GRACE_S": "60",
        "LIMNER_GATEWAY_GRACE_S": "60",
        "LIMNER_UPSCALE_CACHE_DIR": str(ROOT / ".cache" / "limner"),
        "LIMNER_UPSCALE_GRACE_S": "60",
        "LIMNER_UPSCALE_MODELS": "realesr-animevideov3",
    }


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """LIMNER_DIFFUSION_MODELS; else the embedded model; else random weights in its structure."""
    chosen = os.environ.get("LIMNER_DIFFUSION_MODELS")
    if chosen:
        return chosen
    if (_EMBEDDED_MODEL / "model_index.json").exists():
        return f"limner-emoji={_EMBEDDED_MODEL}"
    from tests.diffusion.tiny import write_emoji_like_model

    return f"limner-emoji={write_emoji_like_model(tmp_path_factory.mktemp('tiny'))}"


@pytest.fixture(scope="session")
def running(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], models: str
) -> Iterator[RunningSuite]:
    settings = replace(
        plan_suite(tmp_path_factory.mktemp("data"), port=None, models=models),
        gateway_metrics_port=free_port(),
        diffusion_metrics_port=free_port(),
        upscale_metrics_port=free_port(),
    )
    with running_suite(settings, environment) as suite:
        yield suite


@pytest.fixture
def suite(running: RunningSuite) -> RunningSuite:
    """The suite that all tests share; who ends a service of it starts it again."""
    running.wait_until_ready()
    return running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder to run a command in."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder
