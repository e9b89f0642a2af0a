"""Engines of a small component: what they are found by, and what is refused."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from services.graphs.graph import GraphError, GraphSource
from services.graphs.selection import GraphOptions, open_graph
from services.graphs.shapes import ShapeRange
from services.graphs.store import GraphStore
from services.graphs.tensorrt.build import EngineBuildError
from services.graphs.tensorrt.precision import fastest_precision, in_precision
from services.graphs.tensorrt.store import EngineStore

needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs TensorRT for RTX: pip install 'limner[tensorrt]'",
)

ROWS = ShapeRange(smallest=(1, 3), usual=(4, 3), largest=(8, 3))


@pytest.fixture(scope="module")
def linear() -> GraphSource:
    return GraphSource(
        name="linear",
        revision="r",
        module=nn.Linear(3, 2),
        input_names=("x",),
        example_inputs=(torch.zeros(2, 3),),
        dynamic_axes=(frozenset({0}),),
        precisions=frozenset({"float32", "float16"}),
        shape_ranges=(ROWS,),
    )


def engines(tmp_path: Path, store: GraphStore) -> EngineStore:
    return EngineStore(tmp_path / "engines", graphs=store)


@needs_builder
def test_an_engine_is_built_once(tmp_path: Path, store: GraphStore, linear: GraphSource) -> None:
    subject = engines(tmp_path, store)
    first = subject.engine(linear, capabilities=("8.9",))
    written_at = first.path.stat().st_mtime_ns

    again = engines(tmp_path, store).engine(linear, capabilities=("8.9",))

    assert again == first
    assert again.path.stat().st_mtime_ns == written_at


@needs_builder
def test_other_gpus_or_sizes_have_an_engine_of_their_own(
    tmp_path: Path, store: GraphStore, linear: GraphSource
) -> None:
    subject = engines(tmp_path, store)
    wider = replace(linear, shape_ranges=(replace(ROWS, largest=(16, 3)),))

    paths = {
        subject.engine(linear, capabilities=("8.9",)).path,
        subject.engine(linear, capabilities=("8.9", "12.0")).path,
        subject.engine(wider, capabilities=("8.9",)).path,
    }

    assert len(paths) == 3
    same = subject.engine(linear, capabilities=("12.0", "8.9")).path
    assert same in paths


@needs_builder
def test_a_damaged_engine_is_built_again(
    tmp_path: Path, store: GraphStore, linear: GraphSource
) -> None:
    subject = engines(tmp_path, store)
    built = subject.engine(linear, capabilities=("8.9",))
    built.path.write_bytes(b"half of an eng")

    again = subject.engine(linear, capabilities=("8.9",))

    assert again.path.stat().st_size > len(b"half of an eng")


@needs_builder
def test_a_gpu_that_the_builder_does_not_know_is_named(
    tmp_path: Path, store: GraphStore, linear: GraphSource
) -> None:
    with pytest.raises(EngineBuildError, match=r"compute capability 9\.0"):
        engines(tmp_path, store).engine(linear, capabilities=("9.0",))


@needs_builder
def test_a_component_without_sizes_is_refused(
    tmp_path: Path, store: GraphStore, linear: GraphSource
) -> None:
    with pytest.raises(GraphError, match="does not say for which sizes"):
        engines(tmp_path, store).engine(replace(linear, shape_ranges=None), capabilities=("8.9",))


@needs_builder
def test_what_tensorrt_does_not_compute_is_an_error_that_says_so(
    tmp_path: Path, store: GraphStore, linear: GraphSource
) -> None:
    class Narrow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.uint8).permute(1, 0)

    source = replace(linear, name="narrow", module=Narrow(), precisions=frozenset({"float32"}))

    with pytest.raises(EngineBuildError, match=r"does not accept .*UINT8"):
        engines(tmp_path, store).engine(source, capabilities=("8.9",))


def test_without_a_gpu_the_runtime_says_so(store: GraphStore, linear: GraphSource) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options = GraphOptions(runtime="tensorrt", device="cpu", thread_count=1, store=store)

    with pytest.raises(GraphError, match="needs a GPU"):
        open_graph(linear, options)


def test_a_component_in_half_precision_takes_and_returns_what_it_did(linear: GraphSource) -> None:
    rows = torch.randn(5, 3)
    assert fastest_precision(linear) == "float16"

    half = in_precision(linear, "float16")

    assert half.revision != linear.revision
    output = half.module(rows)
    assert output.dtype == torch.float32
    assert not torch.equal(output, linear.module(rows))
    torch.testing.assert_close(output, linear.module(rows), atol=5e-3, rtol=5e-3)
    assert linear.module.weight.dtype == torch.float32


@pytest.mark.parametrize("shape", [(9, 3), (1, 4), (3,)])
def test_a_range_holds_no_shape_beyond_it(shape: tuple[int, ...]) -> None:
    assert not ROWS.holds(shape)
    assert ROWS.holds((8, 3))


def test_a_range_must_rise() -> None:
    with pytest.raises(ValueError, match="must rise"):
        ShapeRange(smallest=(2, 3), usual=(1, 3), largest=(8, 3))


@pytest.mark.gpu
def test_an_engine_computes_what_torch_does(tmp_path: Path, linear: GraphSource) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    options = GraphOptions(
        runtime="tensorrt", device="cuda", thread_count=1, store=GraphStore(tmp_path)
    )
    rows = torch.randn(19, 3)

    output = open_graph(linear, options)(rows.cuda())

    torch.testing.assert_close(output.cpu(), linear.module(rows), atol=5e-3, rtol=5e-3)
