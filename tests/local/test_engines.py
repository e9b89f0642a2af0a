"""`limner engines build`: what it lists a server finds, and what is in the way is told."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from services.graphs.graph import GraphSource
from services.graphs.selection import engine_store
from services.graphs.store import GraphStore
from services.upscale.loading import engine_sources
from services.upscale.model import DeviceOptions
from services.upscale.weights.library import find_entries
from tests.upscale.tiny import srvgg_weights

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs TensorRT for RTX: pip install 'limner[tensorrt]'",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one upscaler."""
    folder = tmp_path / "upscalers"
    folder.mkdir()
    save_file(srvgg_weights(), folder / "tiny.safetensors")
    return folder


def _build(
    folder: Path, *arguments: str, without: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command for the upscaler in `folder`, in a process that lacks some packages."""
    command = ["engines", "build", "--service", "upscale", *arguments]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n"
        f"from services.client.cli.app import run; sys.exit(run({command!r}))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'proto' / 'gen'}",
        "LIMNER_UPSCALE_FOLDERS": str(folder),
        "LIMNER_UPSCALE_CACHE_DIR": str(folder.parent / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def _source(folder: Path) -> GraphSource:
    (source,) = engine_sources(find_entries([folder])["tiny"], DeviceOptions())
    return source


@needs_builder
def test_an_engine_is_listed_where_a_server_for_that_gpu_looks_for_it(folder: Path) -> None:
    built = _build(folder, "--gpu", "8.9", "--gpu", "12.0")
    assert built.returncode == 0, built.stderr
    listed = {line.split()[2]: line.split() for line in built.stdout.splitlines()}
    assert sorted(listed) == ["12.0", "8.9"]
    store = engine_store(GraphStore(folder.parent / "cache" / "graphs"))
    for gpu, words in listed.items():
        assert words[:2] == ["tiny", "upscaler"]
        path = Path(words[-1])
        built_at = path.stat().st_mtime_ns
        assert store.engine(_source(folder), capabilities=(gpu,)).path == path
        assert path.stat().st_mtime_ns == built_at, "it is not built again"


@needs_builder
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "no GPU is here to build an engine for; name compute capabilities instead"),
        (("--gpu", "1.0"), "cannot build for compute capability 1.0"),
    ],
)
def test_a_gpu_that_cannot_be_built_for_is_told(
    folder: Path, arguments: tuple[str, ...], reason: str
) -> None:
    ended = _build(folder, *arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith("limner engines: tiny: ")
    assert reason in ended.stderr
    assert ended.stdout == ""


def test_without_tensorrt_the_package_is_named_before_any_work(folder: Path) -> None:
    ended = _build(folder, "--gpu", "8.9", without=("tensorrt", "tensorrt_rtx"))
    assert ended.returncode == 1
    assert "pip install 'limner[tensorrt]'" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (folder.parent / "cache").exists()


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    ended = _build(tmp_path / "nowhere", "--gpu", "8.9")
    assert ended.returncode == 1
    assert ended.stderr == f"limner engines: there is no folder {tmp_path / 'nowhere'}\n"
