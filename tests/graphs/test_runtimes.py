"""Every runtime computes what torch computes, for any number of rows and any size."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.diffusion.families.sd1.layout import Layout
from services.graphs.graph import Graph, GraphError, GraphSource
from services.graphs.isolation import MODEL_FAULTS
from services.graphs.onnxruntime_graph import OnnxRuntimeGraph
from services.graphs.openvino_graph import OpenVinoGraph, native_precision
from services.graphs.torch_graph import TorchGraph
from tests.graphs.inputs import denoiser_inputs

# The first test waits for an export, which a busy machine can draw out to minutes.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(params=["onnxruntime", "openvino"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def open_file(runtime: str, path: Path) -> Graph:
    if runtime == "onnxruntime":
        return OnnxRuntimeGraph(path, thread_count=1)
    return OpenVinoGraph(path, precision="float32", thread_count=1)


@pytest.mark.parametrize(("row_count", "height", "width"), [(1, 64, 64), (3, 32, 72), (5, 128, 40)])
def test_an_exported_denoiser_equals_torch(
    runtime: str,
    layout: Layout,
    denoiser: GraphSource,
    denoiser_file: Path,
    row_count: int,
    height: int,
    width: int,
) -> None:
    graph = open_file(runtime, denoiser_file)
    inputs = denoiser_inputs(layout, row_count, height, width)

    output = graph(*inputs)

    expected = TorchGraph(denoiser, device="cpu")(*inputs)
    assert graph.runtime == f"{runtime}-float32"
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_inputs_that_do_not_fit_are_a_fault_that_the_batcher_isolates(
    runtime: str, layout: Layout, denoiser_file: Path
) -> None:
    latents, timesteps, context = denoiser_inputs(layout, 2, 64, 64)

    with pytest.raises(MODEL_FAULTS):
        open_file(runtime, denoiser_file)(latents[:, :3].contiguous(), timesteps, context)


def test_an_exported_decoder_gives_the_pixels_of_torch(
    runtime: str, layout: Layout, decoder: GraphSource, decoder_file: Path
) -> None:
    latents = denoiser_inputs(layout, 3, 64, 40)[0]

    output = open_file(runtime, decoder_file)(latents)

    expected = TorchGraph(decoder, device="cpu")(latents)
    assert output.shape == (3, 64, 40, 3)
    assert output.dtype == torch.uint8
    assert (output.int() - expected.int()).abs().max() <= 1
    assert (output != expected).float().mean() < 0.01


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino_rows_are_bit_for_bit_the_same_in_any_batch(
    layout: Layout, denoiser_file: Path, precision: str
) -> None:
    if precision == "bfloat16" and native_precision() != "bfloat16":
        pytest.skip("this processor has no bfloat16 units")
    graph = OpenVinoGraph(denoiser_file, precision=precision, thread_count=2)
    latents, timesteps, context = denoiser_inputs(layout, 16)
    alone = [graph(latents[i, None], timesteps[i, None], context[i, None]) for i in range(16)]

    for row_count in (2, 3, 5, 8, 16):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(row_count))[:row_count]
        batch = graph(latents[order], timesteps[order], context[order])
        for position, row in enumerate(order.tolist()):
            assert torch.equal(batch[position], alone[row][0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino_rows_are_bit_for_bit_the_same_in_any_pieces(
    layout: Layout, denoiser: GraphSource, denoiser_file: Path, precision: str
) -> None:
    if precision == "bfloat16" and native_precision() != "bfloat16":
        pytest.skip("this processor has no bfloat16 units")
    graph = OpenVinoGraph(
        denoiser_file, precision=precision, thread_count=2, row_shapes=denoiser.row_shapes
    )
    side = layout.native_side
    latents, timesteps, context = denoiser_inputs(layout, 23, side, side)
    alone = [graph(latents[i, None], timesteps[i, None], context[i, None])[0] for i in range(23)]

    assert set(graph.piece_sizes) == {1, 2, 4, 8, 16}
    for row_count in (2, 3, 7, 8, 15, 16, 23):
        batch = graph(latents[:row_count], timesteps[:row_count], context[:row_count])
        assert torch.equal(batch, torch.stack(alone[:row_count]))


def test_openvino_in_pieces_computes_what_it_computes_whole(
    layout: Layout, denoiser: GraphSource, denoiser_file: Path
) -> None:
    pieces = OpenVinoGraph(
        denoiser_file, precision="float32", thread_count=1, row_shapes=denoiser.row_shapes
    )
    whole = OpenVinoGraph(denoiser_file, precision="float32", thread_count=1)
    side = layout.native_side

    for sides in ((side, side), (side, side // 2)):
        inputs = denoiser_inputs(layout, 5, *sides)
        torch.testing.assert_close(pieces(*inputs), whole(*inputs), atol=1e-5, rtol=1e-5)


def test_rows_of_every_runtime_differ_by_rounding_alone(
    runtime: str, layout: Layout, denoiser_file: Path
) -> None:
    graph = open_file(runtime, denoiser_file)
    latents, timesteps, context = denoiser_inputs(layout, 8)

    together = graph(latents, timesteps, context)

    for row in range(8):
        alone = graph(latents[row, None], timesteps[row, None], context[row, None])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


def test_a_result_survives_the_next_call(runtime: str, layout: Layout, denoiser_file: Path) -> None:
    graph = open_file(runtime, denoiser_file)
    first = graph(*denoiser_inputs(layout, 2))
    kept = first.clone()

    graph(*(tensor + 1.0 for tensor in denoiser_inputs(layout, 2)))

    assert torch.equal(first, kept)


def test_openvino_names_a_file_that_it_does_not_accept(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")

    with pytest.raises(GraphError, match=r"OpenVINO refuses .*model\.onnx"):
        OpenVinoGraph(path, precision="float32", thread_count=1)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_in_half_precision_stays_close_to_the_cpu(
    layout: Layout, denoiser: GraphSource, precision: str, compiled: bool
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    inputs = denoiser_inputs(layout, 4)
    expected = TorchGraph(denoiser, device="cpu")(*inputs)
    # A graph converts its module, and the fixture's is shared.
    own = replace(denoiser, module=copy.deepcopy(denoiser.module))
    graph = TorchGraph(own, device="cuda", precision=precision, compiled=compiled)

    output = graph(*(tensor.cuda() for tensor in inputs))
    again = graph(*(tensor.cuda() for tensor in inputs))

    assert output.dtype == torch.float32
    assert torch.equal(output, again)
    torch.testing.assert_close(output.cpu(), expected, atol=0.05, rtol=0)
