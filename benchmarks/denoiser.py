"""Milliseconds a call of a model's denoiser or decoder, on every runtime, by batch size.

    python -m benchmarks.denoiser models/limner-emoji
    python -m benchmarks.denoiser models/limner-emoji --component decoder

On a machine with CUDA the runtimes are torch's, eager and compiled; elsewhere those for CPUs. All
take turns in one process, so that other work on the machine hits them alike: compare the columns
of one run. Besides the time it reports, per runtime, the arithmetic done per second (multiply and
add count as two; matrix products and convolutions only) and its share of what one large matrix
product reaches on the same device in the same precision, the largest difference from torch in
float32, and between a row computed alone and the same row in a batch (0: bit for bit the same).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import Cell, json_line, table
from services.diffusion.families.files import locate
from services.diffusion.families.sd1.components import load_components
from services.diffusion.families.sd1.layout import LATENT_CHANNEL_COUNT, Layout, read_layout
from services.diffusion.families.sd1.sources import decoder_source, denoiser_source
from services.graphs.graph import Graph, GraphSource, Precision
from services.graphs.onnxruntime_graph import OnnxRuntimeGraph
from services.graphs.openvino_graph import OpenVinoGraph, native_precision
from services.graphs.store import GraphStore
from services.graphs.torch_graph import TorchGraph

REFERENCE = "torch-float32"

Times = dict[str, dict[int, list[float]]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    layout = read_layout(locate(options.model))
    parts = load_components(layout)
    source = (
        denoiser_source(layout, parts.unet)
        if options.component == "denoiser"
        else decoder_source(layout, parts.vae)
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = tuple(
        tensor.to(device)
        for tensor in example_inputs(layout, options.component, max(options.batches))
    )
    flop_count = row_flop_count(source)
    graphs = (
        open_on_cuda(source)
        if device == "cuda"
        else open_on_cpu(source, GraphStore(options.cache_dir / "graphs"), options.threads)
    )
    times = measure(graphs, inputs, options.batches, options.rounds)
    rates = arithmetic(times, flop_count, device)
    differences = compare(graphs, inputs, options.batches)
    print(f"{options.component} of {options.model}, ms a call, median of {options.rounds} (best)\n")
    print(time_table(times), "\n")
    print(f"{flop_count / 1e9:.2f} GFLOP a row\n")
    print(rate_table(rates), "\n")
    print(difference_table(differences), "\n")
    results = {"component": options.component, "threads": options.threads, "device": device}
    figures = {"ms": times, "row_flop_count": flop_count, "rates": rates}
    print(json_line("denoiser", results | figures | {"differences": differences}))


def open_on_cpu(source: GraphSource, store: GraphStore, thread_count: int) -> dict[str, Graph]:
    """The component on every runtime for CPUs, by name."""
    path = store.path(source)
    graphs: list[Graph] = [
        TorchGraph(_copied(source), device="cpu"),
        OnnxRuntimeGraph(path, thread_count=thread_count),
        OpenVinoGraph(path, precision="float32", thread_count=thread_count),
    ]
    if source.name == "denoiser":
        graphs.append(TorchGraph(_copied(source), device="cpu", precision="bfloat16"))
    precision = native_precision()
    if precision == "bfloat16":
        graphs.append(OpenVinoGraph(path, precision=precision, thread_count=thread_count))
    named = {graph.runtime: graph for graph in graphs}
    if source.row_shapes:
        named[f"openvino-{precision}-pieces"] = OpenVinoGraph(
            path, precision=precision, thread_count=thread_count, row_shapes=source.row_shapes
        )
    return named


def open_on_cuda(source: GraphSource) -> dict[str, Graph]:
    """The component in torch on the GPU: float32, and half precision eager and compiled."""
    graphs = [TorchGraph(_copied(source), device="cuda")]
    half: tuple[Precision, ...] = ("float16", "bfloat16")
    graphs += [
        TorchGraph(_copied(source), device="cuda", precision=precision, compiled=compiled)
        for precision in half
        if precision in source.precisions
        for compiled in (False, True)
    ]
    return {graph.runtime: graph for graph in graphs}


def row_flop_count(source: GraphSource) -> int:
    """Floating-point operations of one row at the native size, as torch counts them."""
    rows = source.row_shapes
    inputs = source.example_inputs
    if rows is not None:
        inputs = tuple(
            torch.zeros((1, *shape), dtype=example.dtype)
            for shape, example in zip(rows, source.example_inputs, strict=True)
        )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        source.module(*inputs)
    return int(counter.get_total_flops()) // len(inputs[0])


def arithmetic(times: Times, row_flops: int, device: str) -> dict[str, dict[str, float]]:
    """For every runtime the best TFLOP/s over the batch sizes, and its share of a matrix product's.

    The share is left out where torch's own matrix product is no measure of the runtime: on CPUs.
    """
    found = {}
    for name, of in times.items():
        best = max(batch * row_flops / (1e-3 * min(taken)) for batch, taken in of.items()) / 1e12
        found[name] = {"tflop_per_s": best}
        if device == "cuda":
            precision = name.split("-")[1]
            found[name]["share_of_matmul"] = best / matmul_tflop_per_s(precision)
    return found


@cache
def matmul_tflop_per_s(precision: str) -> float:
    """What the GPU reaches in a product of two 8192 × 8192 matrices."""
    side, repeats = 8192, 10
    a, b = (torch.randn(side, side, device="cuda", dtype=getattr(torch, precision)) for _ in "ab")
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize()
    return 2.0 * side**3 * repeats / (time.perf_counter() - started) / 1e12


def example_inputs(layout: Layout, component: str, row_count: int) -> tuple[Tensor, ...]:
    """Random inputs at the model's native size, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    side = layout.native_side // layout.vae_scale
    latents = torch.randn(row_count, LATENT_CHANNEL_COUNT, side, side, generator=generator)
    if component == "decoder":
        return (latents,)
    context = torch.randn(row_count, layout.token_window, layout.text_width, generator=generator)
    return latents, torch.linspace(1.0, layout.schedule.train_step_count - 1, row_count), context


def measure(
    graphs: Mapping[str, Graph], inputs: Sequence[Tensor], batches: Sequence[int], rounds: int
) -> Times:
    """Milliseconds of every call, runtimes taking turns; the first call of each is left out."""
    times: Times = {name: {batch: [] for batch in batches} for name in graphs}
    for batch in batches:
        rows = [tensor[:batch].contiguous() for tensor in inputs]
        for round_ in range(rounds + 1):
            for name, graph in graphs.items():
                started = time.perf_counter()
                graph(*rows)
                if rows[0].is_cuda:
                    torch.cuda.synchronize()
                if round_ > 0:
                    times[name][batch].append(1e3 * (time.perf_counter() - started))
    return times


def compare(
    graphs: Mapping[str, Graph], inputs: Sequence[Tensor], batches: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Largest differences of every runtime: from the reference, and between batch sizes."""
    reference = _alone(graphs[REFERENCE], inputs)
    found = {}
    for name, graph in graphs.items():
        alone = _alone(graph, inputs)
        batched = [graph(*(tensor[:batch].contiguous() for tensor in inputs)) for batch in batches]
        found[name] = {
            "from_torch": _largest(alone - reference),
            "from_torch_rms": float((alone - reference).square().mean().sqrt()),
            "between_batch_sizes": max(
                _largest(output.float() - alone[: len(output)]) for output in batched
            ),
        }
    return found


def time_table(times: Times) -> str:
    """Runtimes across, batch sizes down."""
    rows: list[list[Cell]] = [
        [batch, *(f"{median(of[batch]):.1f} ({min(of[batch]):.1f})" for of in times.values())]
        for batch in next(iter(times.values()))
    ]
    return table(["batch", *times], rows)


def rate_table(rates: Mapping[str, Mapping[str, float]]) -> str:
    """Runtimes down."""
    rows: list[list[Cell]] = [
        [name, f"{of['tflop_per_s']:.3f}", f"{of['share_of_matmul']:.0%}" if len(of) > 1 else "–"]
        for name, of in rates.items()
    ]
    return table(["runtime", "TFLOP/s at best", "share of a matrix product"], rows)


def difference_table(differences: Mapping[str, Mapping[str, float]]) -> str:
    """Runtimes down, largest differences across."""
    rows = [
        [name, *(f"{value:.2g}" for value in found.values())] for name, found in differences.items()
    ]
    return table(["runtime", "from torch, largest", "rms", "between batch sizes"], rows)


def _alone(graph: Graph, inputs: Sequence[Tensor]) -> Tensor:
    rows = range(len(inputs[0]))
    return torch.cat([graph(*(tensor[row : row + 1] for tensor in inputs)) for row in rows]).float()


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _copied(source: GraphSource) -> GraphSource:
    """A source whose module a torch graph may convert."""
    return replace(source, module=copy.deepcopy(source.module))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.denoiser", description=__doc__)
    parser.add_argument("model", nargs="?", default="models/limner-emoji")
    parser.add_argument("--component", choices=["denoiser", "decoder"], default="denoiser")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache/limner"))
    return parser


if __name__ == "__main__":
    main()
