"""Seconds for each megapixel of output, pictures of mixed sizes, 1, 4 and 16 clients.

    python -m benchmarks.upscale
    python -m benchmarks.upscale --model realesrgan-x4plus --pictures 6
    python -m benchmarks.upscale --large

Limner, in the processor's own precision and in 8 bits, beside what a user would write instead: the
ncnn wheel and torch eager in float32, on whole pictures, one after the other. Each runs in a
process of its own with as many threads, and all take turns, so that other work on the machine hits
them alike: compare the columns of one run. A small picture is one of the smallest tenth of all
pixels; its latency says how long it waits behind large ones. `--large` instead sends photographs
with 24 megapixels out and 24 megapixels in through a server and reports its memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import Cell, json_line, table
from benchmarks.upscale.contenders import NAMES, OURS
from benchmarks.upscale.large import measure_large
from benchmarks.upscale.workload import SIZES, megapixels, pictures
from services.graphs.selection import available_core_count
from services.upscale.weights.library import find_entries

SCALE = 4
_SMALL_PIXELS = 100 * 100

Figures = dict[str, dict[int, dict[str, float]]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    descriptor = find_entries([options.folder])[options.model].descriptor
    assert descriptor is not None, "the benchmark's models are described"
    if options.large:
        large = measure_large(descriptor, options.model, options.folder, options.cache_dir)
        print(table(list(large[0]), [list(figures.values()) for figures in large]))
        print(json_line("upscale-large", {"model": options.model, "pictures": large}))
        return
    assert descriptor.scale == SCALE, "the workload is counted for this scale"
    sources = pictures(options.pictures)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_started(name, options)) for name in NAMES}
        for worker in workers.values():
            assert _line(worker) == "ready"
        rounds = [
            {
                name: {each: _answer(worker, each) for each in options.concurrency}
                for name, worker in workers.items()
            }
            for _ in range(options.rounds)
        ]
        for worker in workers.values():
            assert worker.stdin is not None
            worker.stdin.close()
    total = megapixels(sources, SCALE)
    small = [i for i, each in enumerate(sources) if each.shape[0] * each.shape[1] < _SMALL_PIXELS]
    figures_by_name = _summary(rounds, total, small, options.concurrency)
    shown = ", ".join(f"{width}×{height}" for width, height in SIZES)
    print(f"{options.model}, {options.pictures} pictures ({shown}), {total:.1f} megapixels out\n")
    print(_table(figures_by_name, options.concurrency))
    results = {
        "model": options.model,
        "threads": options.threads,
        "megapixels": total,
        "figures": figures_by_name,
    }
    print(json_line("upscale", results))


def _started(name: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    values = (
        name,
        options.model,
        str(options.folder),
        str(options.cache_dir),
        str(options.threads),
        str(options.pictures),
    )
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.upscale.worker", *values],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def _answer(worker: subprocess.Popen[str], concurrency: int) -> dict[str, Any]:
    assert worker.stdin is not None
    worker.stdin.write(f"{concurrency}\n")
    worker.stdin.flush()
    answer: dict[str, Any] = json.loads(_line(worker))
    return answer


def _summary(
    rounds: Sequence[Mapping[str, Mapping[int, Mapping[str, Any]]]],
    total: float,
    small: Sequence[int],
    concurrencies: Sequence[int],
) -> Figures:
    figures: Figures = {}
    for name in NAMES:
        figures[name] = {}
        for each in concurrencies:
            answers = [round_[name][each] for round_ in rounds]
            figures[name][each] = {
                "seconds_per_megapixel": median(a["seconds"] for a in answers) / total,
                "small_latency_s": median(a["latencies"][i] for a in answers for i in small),
                "peak_mib": max(a["peak_mib"] for a in answers),
            }
    return figures


def _table(figures: Figures, concurrencies: Sequence[int]) -> str:
    rows: list[list[Cell]] = []
    for each in concurrencies:
        of = {name: figures[name][each] for name in NAMES}
        speed = {name: found["seconds_per_megapixel"] for name, found in of.items()}
        best = min(speed[name] for name in NAMES if name not in OURS)
        rows.append(
            [
                each,
                *(f"{speed[name]:.2f}" for name in NAMES),
                *(f"{best / speed[name]:.2f}×" for name in OURS),
                *(f"{of[name]['small_latency_s']:.2f}" for name in NAMES),
                *(f"{of[name]['peak_mib']:.0f}" for name in NAMES),
            ]
        )
    header = [
        "clients",
        *(f"{name} s/MP" for name in NAMES),
        *(f"best peer / {name}" for name in OURS),
        *(f"{name} small, s" for name in NAMES),
        *(f"{name} MiB" for name in NAMES),
    ]
    return table(header, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.upscale", description=__doc__)
    parser.add_argument("--model", default="realesr-animevideov3")
    parser.add_argument("--folder", type=Path, default=Path("models/upscalers"))
    parser.add_argument("--pictures", type=int, default=18)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=available_core_count())
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache/limner"))
    parser.add_argument("--large", action="store_true")
    return parser


if __name__ == "__main__":
    main()
