"""Graphs in 8 bits: near the float ones, made once for each recipe, and refused with a reason."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from services.graphs import quantization
from services.graphs.graph import Calibration, ExportError, GraphSource
from services.graphs.openvino_graph import OpenVinoGraph
from services.graphs.quantization import quantize
from services.graphs.store import GraphStore, graph_key, quantized_key

# An export and two compilations, which a busy machine can draw out to minutes.
pytestmark = pytest.mark.timeout(300)


class CountedInputs:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Iterable[tuple[Tensor, ...]]:
        self.count += 1
        yield from ((torch.randn(4, 3, 16, 16),) for _ in range(8))


@pytest.fixture
def inputs() -> CountedInputs:
    return CountedInputs()


@pytest.fixture
def source(inputs: CountedInputs) -> GraphSource:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1)
    )
    return GraphSource(
        name="convolutions",
        revision="r1",
        module=layers.requires_grad_(False),
        input_names=("x",),
        example_inputs=(torch.zeros(2, 3, 16, 16),),
        dynamic_axes=(frozenset({0}),),
        row_shapes=((3, 16, 16),),
        calibration=Calibration(recipe="random-1", inputs=inputs),
    )


def test_convolutions_compute_in_8_bits_near_the_float_result(
    tmp_path: Path, source: GraphSource, caplog: pytest.LogCaptureFixture
) -> None:
    path = GraphStore(tmp_path).quantized_path(source)

    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("Conv") == 2
    assert "QuantizeLinear" in operators
    graph = OpenVinoGraph(path, precision="float32", thread_count=1, quantized=True)
    x = torch.randn(5, 3, 16, 16)
    exact = source.module(x)
    error = (graph(x) - exact).abs().mean() / exact.abs().mean()
    assert 0 < error < 0.05
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not list(path.parent.glob("*.prepared"))


def test_rows_are_equal_bit_for_bit_in_pieces_of_any_size(
    tmp_path: Path, source: GraphSource
) -> None:
    graph = OpenVinoGraph(
        GraphStore(tmp_path).quantized_path(source),
        precision="float32",
        thread_count=1,
        quantized=True,
        row_shapes=source.row_shapes,
    )
    x = torch.randn(23, 3, 16, 16)

    together = graph(x)

    assert all(torch.equal(together[row], graph(x[row : row + 1])[0]) for row in range(23))


def test_a_graph_is_calibrated_once_for_each_recipe(
    tmp_path: Path, source: GraphSource, inputs: CountedInputs
) -> None:
    store = GraphStore(tmp_path)
    other = replace(source, calibration=Calibration(recipe="random-2", inputs=inputs))

    paths = [store.quantized_path(source) for _ in range(2)]
    assert inputs.count == 1
    store.quantized_path(other)

    assert paths[0] == paths[1]
    assert inputs.count == 2
    assert len({graph_key(source), quantized_key(source), quantized_key(other)}) == 3
    assert graph_key(source) == graph_key(other)


def test_what_cannot_be_put_in_8_bits_is_refused_with_a_reason(
    tmp_path: Path, source: GraphSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = GraphStore(tmp_path).path(source)

    with pytest.raises(ExportError, match="nothing to be calibrated with"):
        quantize(replace(source, calibration=None), exported, tmp_path / "out.onnx")
    monkeypatch.setattr(quantization, "_LARGEST_BYTES", 10)
    with pytest.raises(ExportError, match="too large for 8 bits"):
        quantize(source, exported, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
