from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from services.graphs.graph import GraphError, GraphSource, GraphStoreError, RuntimeName
from services.graphs.openvino_graph import native_precision
from services.graphs.selection import (
    GraphOptions,
    is_worth_copies,
    open_graph,
    resolve_device,
)
from services.graphs.store import GraphStore


def options(runtime: RuntimeName, root: Path) -> GraphOptions:
    return GraphOptions(runtime=runtime, device="cpu", thread_count=1, store=GraphStore(root))


def source(*precisions: str) -> GraphSource:
    return GraphSource(
        name="linear",
        revision="r",
        module=nn.Linear(3, 2),
        input_names=("x",),
        example_inputs=(torch.zeros(2, 3),),
        dynamic_axes=(frozenset({0}),),
        precisions=frozenset({"float32", *precisions}),
    )


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "graphs"


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ("auto", "openvino-float32"),
        ("openvino", "openvino-float32"),
        ("onnxruntime", "onnxruntime-float32"),
        ("torch", "torch-float32"),
    ],
)
def test_the_runtime_asked_for_is_the_one_used(
    tmp_path: Path, runtime: RuntimeName, expected: str
) -> None:
    subject = source()
    rows = torch.randn(5, 3)

    graph = open_graph(subject, options(runtime, tmp_path))

    assert graph.runtime == expected
    torch.testing.assert_close(graph(rows), subject.module(rows).detach(), atol=1e-6, rtol=1e-6)


def test_openvino_takes_the_fastest_precision_that_the_component_allows(tmp_path: Path) -> None:
    graph = open_graph(source("bfloat16"), options("openvino", tmp_path))

    assert graph.runtime == f"openvino-{native_precision()}"


def test_auto_falls_back_to_torch_and_says_why(
    unwritable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        graph = open_graph(source(), options("auto", unwritable))

    assert graph.runtime == "torch-float32"
    assert "linear runs in torch" in caplog.text
    assert "cannot keep exported graphs" in caplog.text


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_runtime_asked_for_by_name_is_never_replaced(
    unwritable: Path, runtime: RuntimeName
) -> None:
    with pytest.raises(GraphStoreError):
        open_graph(source(), options(runtime, unwritable))


def test_cpu_runtimes_run_on_the_cpu_wherever_they_are() -> None:
    assert resolve_device("auto", "openvino") == "cpu"
    assert resolve_device("cpu", "auto") == "cpu"
    with pytest.raises(GraphError, match="runtime openvino is for CPUs"):
        resolve_device("cuda", "openvino")


def test_a_graph_whose_weights_lie_beside_it_is_as_large_as_they_are(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"small")
    assert is_worth_copies(graph)
    with (tmp_path / "model.onnx.data").open("wb") as weights:
        weights.truncate(3 * 2**30)  # a sparse file
    assert not is_worth_copies(graph)
