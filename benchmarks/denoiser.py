"""Milliseconds a call of a model's denoiser or decoder, on every runtime, by batch size.

    python -m benchmarks.denoiser models/limner-emoji
    python -m benchmarks.denoiser models/limner-emoji --component decoder

All runtimes take turns in one process, so that other work on the machine hits them alike: compare
the columns of one run. Besides the time it reports, per runtime, the largest difference from torch
in float32, and between a row computed alone and the same row in a batch (0: bit for bit the same).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.report import Cell, json_line, table
from services.diffusion.families.files import locate
from services.diffusion.families.sd1.components import load_components
from services.diffusion.families.sd1.layout import LATENT_CHANNEL_COUNT, Layout, read_layout
from services.diffusion.families.sd1.sources import decoder_source, denoiser_source
from services.graphs.graph import Graph, GraphSource
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
    graphs = open_all(source, GraphStore(options.cache_dir / "graphs"), options.threads)
    inputs = example_inputs(layout, options.component, max(options.batches))
    times = measure(graphs, inputs, options.batches, options.rounds)
    differences = compare(graphs, inputs, options.batches)
    print(f"{options.component} of {options.model}, ms a call, median of {options.rounds} (best)\n")
    print(time_table(times), "\n")
    print(difference_table(differences), "\n")
    results = {"component": options.component, "threads": options.threads}
    print(json_line("denoiser", results | {"ms": times, "differences": differences}))


def open_all(source: GraphSource, store: GraphStore, thread_count: int) -> dict[str, Graph]:
    """The component on every runtime for CPUs, by name."""
    path = store.path(source)
    graphs: list[Graph] = [
        TorchGraph(_copied(source), device="cpu"),
        OnnxRuntimeGraph(path, thread_count=thread_count),
        OpenVinoGraph(path, precision="float32", thread_count=thread_count),
    ]
    if native_precision() == "bfloat16":
        graphs.append(OpenVinoGraph(path, precision="bfloat16", thread_count=thread_count))
    if source.name == "denoiser":
        graphs.append(TorchGraph(_copied(source), device="cpu", precision="bfloat16"))
    return {graph.runtime: graph for graph in graphs}


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
