"""`limner up` and `limner demo` as a newcomer runs them."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from services.local.ports import HOST, free_port, is_free
from tests.e2e.running_suite import LIMNER, START_TIMEOUT_S, image_format, wait_for


@pytest.fixture
def variables(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a command, without what would point to another suite."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIMNER_")}
    return {**kept, **environment, "TMPDIR": str(tmp_path)}


def test_up_serves_and_leaves_nothing_behind(
    variables: dict[str, str], models: str, folder: Path
) -> None:
    port = free_port()
    log = folder / "up.log"
    with log.open("wb") as errors:
        up = subprocess.Popen(
            [*LIMNER, "up", "--port", str(port), "--models", models],
            cwd=folder,
            env=variables,
            stderr=errors,
        )
    try:
        wait_for(
            lambda: "Limner is up" in log.read_text() or up.poll() is not None,
            "limner up is up",
            timeout_s=START_TIMEOUT_S,
        )
        assert up.poll() is None, log.read_text()
        services = psutil.Process(up.pid).children()
        assert len(services) == 4
        line = ["generate", "a dog", "-o", "dog.png", "--address", f"{HOST}:{port}"]
        done = subprocess.run([*LIMNER, *line], cwd=folder, env=variables, timeout=180)
        assert done.returncode == 0
        again = subprocess.run(
            [*LIMNER, "up", "--port", str(port), "--models", models],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert again.returncode == 1
        assert f"port {port} is in use" in again.stderr
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=180) == 0
    finally:
        up.kill()
        up.wait()
    assert not any(service.is_running() for service in services)
    assert is_free(port)
    assert image_format(folder / "dog.png") == "PNG"


def test_demo_draws_one_picture_and_ends(
    variables: dict[str, str], models: str, folder: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*LIMNER, "demo", "a red apple", "-o", "apple.png", "--models", models],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "ready after" in done.stderr
    assert "apple.png" in done.stderr
    assert image_format(folder / "apple.png") == "PNG"
    assert {path.name for path in folder.iterdir()} == {"apple.png"}
    assert list(tmp_path.glob("limner-demo-*")) == []


def test_demo_with_a_broken_model_fails_and_says_why(
    variables: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*LIMNER, "demo", "--models", f"broken={folder}/missing"],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
    )
    assert done.returncode == 1
    assert "limner: diffusion exited with 1" in done.stderr
    assert "missing" in done.stderr
    (data,) = tmp_path.glob("limner-demo-*")
    assert f"  logs: {data / 'logs'}" in done.stderr.splitlines()
