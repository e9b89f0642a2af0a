from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from services.graphs.graph import ExportError, GraphSource, GraphStoreError
from services.graphs.store import GraphStore, graph_key


class RecordingExporter:
    """Writes a marker in the place of a graph and counts."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.count = 0
        self._failure = failure

    def __call__(self, source: GraphSource, path: Path) -> None:
        self.count += 1
        path.write_bytes(b"half")
        if self._failure:
            raise self._failure
        path.write_bytes(f"graph of {source.name}".encode())
        (path.parent / "model.onnx.data").write_bytes(b"weights")


def linear_source(**changes: object) -> GraphSource:
    source = GraphSource(
        name="linear",
        revision="r1",
        module=nn.Linear(3, 2),
        input_names=("x",),
        example_inputs=(torch.zeros(2, 3),),
        dynamic_axes=(frozenset({0}),),
    )
    return replace(source, **changes)


def test_a_graph_is_exported_once(tmp_path: Path) -> None:
    exporter = RecordingExporter()

    paths = {GraphStore(tmp_path, exporter=exporter).path(linear_source()) for _ in range(3)}

    assert exporter.count == 1
    (path,) = paths
    assert path.read_bytes() == b"graph of linear"


def test_the_real_exporter_writes_a_valid_graph(tmp_path: Path) -> None:
    path = GraphStore(tmp_path).path(linear_source())

    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [put.name for put in model.graph.input] == ["x"]


@pytest.mark.parametrize(
    "changes",
    [
        {"revision": "r2"},
        {"name": "other"},
        {"dynamic_axes": (frozenset(),)},
        {"example_inputs": (torch.zeros(2, 4),)},
    ],
)
def test_what_decides_the_file_decides_the_key(changes: dict[str, object]) -> None:
    assert graph_key(linear_source(**changes)) != graph_key(linear_source())


def test_the_size_of_a_dynamic_axis_does_not(tmp_path: Path) -> None:
    larger = linear_source(example_inputs=(torch.zeros(7, 3),))

    assert graph_key(larger) == graph_key(linear_source())


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_a_damaged_graph_is_made_again(tmp_path: Path, name: str, damage: str) -> None:
    exporter = RecordingExporter()
    store = GraphStore(tmp_path, exporter=exporter)
    victim = store.path(linear_source()).parent / name
    intact = victim.read_bytes()
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(intact[:-1] if damage == "truncate" else b"\x00" + intact[1:])

    path = store.path(linear_source())

    assert exporter.count == 2
    assert path.read_bytes() == b"graph of linear"
    assert victim.read_bytes() == intact


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    store = GraphStore(tmp_path, exporter=RecordingExporter(ExportError("no such operator")))

    with pytest.raises(ExportError):
        store.path(linear_source())

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_with_the_folder(tmp_path: Path) -> None:
    full = OSError(28, os.strerror(28))
    store = GraphStore(tmp_path, exporter=RecordingExporter(full))

    with pytest.raises(GraphStoreError, match=rf"{tmp_path}: No space left on device"):
        store.path(linear_source())

    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(GraphStoreError, match="cannot keep exported graphs"):
        GraphStore(tmp_path / "file" / "graphs").path(linear_source())


def test_what_a_killed_process_left_is_cleared_and_a_running_one_is_not(tmp_path: Path) -> None:
    abandoned, running = tmp_path / ".partial-old", tmp_path / ".partial-new"
    abandoned.mkdir()
    running.mkdir()
    long_ago = time.time() - 7200
    os.utime(abandoned, (long_ago, long_ago))

    GraphStore(tmp_path, exporter=RecordingExporter()).path(linear_source())

    assert not abandoned.exists()
    assert running.exists()


def test_two_exports_at_once_end_in_one_intact_graph(tmp_path: Path) -> None:
    together = threading.Barrier(2)
    exporter = RecordingExporter()

    def export_together(source: GraphSource, path: Path) -> None:
        together.wait()
        exporter(source, path)

    store = GraphStore(tmp_path, exporter=export_together)
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(store.path(linear_source()))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert exporter.count == 2
    assert len(paths) == 2
    assert len(set(paths)) == 1
    assert GraphStore(tmp_path, exporter=exporter).path(linear_source()) == paths[0]
    assert exporter.count == 2
    assert set(json.loads((paths[0].parent / "manifest.json").read_text())["sha256"]) == {
        "model.onnx",
        "model.onnx.data",
    }
