"""Speed and memory of training at the size of Stable Diffusion 1.5, random weights, on a CPU.

    python -m benchmarks.training
    python -m benchmarks.training --cases 'lora, float32'       # those whose name has this
    python -m benchmarks.training --tiny --side 64              # a smoke run

Limner beside the loop of diffusers' DreamBooth scripts (`peer`), each case in a process of its own,
one after the other. A step is one picture of the subject and one of the class at `--side` pixels,
one AdamW step. There is one picture of each kind, so that Limner's caches are full after the
warm-up, as they are early in a run of hundreds of steps. Peak memory is the process's largest,
loading included. Needs 18 GiB of memory; the model takes 4 GiB of disk in `--folder`, where it is
kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import json_line, table
from benchmarks.training.case import Case, Workload, all_cases
from benchmarks.training.model import write_model

_PICTURE_SIDE = 512

Figures = Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    folder: Path = options.folder / ("tiny" if options.tiny else "full")
    write_model(folder / "model", tiny=options.tiny)
    for seed, name in enumerate(("photographs", "classes")):
        _write_picture(folder / name, seed)
    workload = Workload(
        side=options.side, step_count=options.step_count, warmup_count=options.warmup_count
    )
    measured: list[tuple[Case, Figures]] = []
    for case in all_cases():
        if all(part in case.name for part in options.cases):
            measured.append((case, _measure(case, workload, folder)))
            print(f"{case.name}: {dict(measured[-1][1])}", file=sys.stderr, flush=True)
    print(_table(measured))
    results = {
        "workload": asdict(workload),
        "tiny": options.tiny,
        "cases": [{**asdict(case), **figures} for case, figures in measured],
    }
    print(json_line("training", results))


def _measure(case: Case, workload: Workload, folder: Path) -> Figures:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training.worker"]
    done = subprocess.run(
        [*command, case.to_json(), workload.to_json(), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _table(measured: Sequence[tuple[Case, Figures]]) -> str:
    """With the ratio to diffusers' loop where it was measured at the same settings."""
    peers = {_settings(case): figures for case, figures in measured if case.trainer == "diffusers"}
    rows = []
    for case, figures in measured:
        peer = peers.get(_settings(case)) if case.trainer == "limner" else None
        rows.append(
            [
                case.name,
                f"{figures['seconds_per_step']:.2f}",
                f"{figures['peak_mib'] / 1024:.2f}",
                _ratio(peer, figures, "seconds_per_step"),
                _ratio(figures, peer, "peak_mib"),
            ]
        )
    return table(["case", "s/step", "GiB", "× diffusers' speed", "× its memory"], rows)


def _settings(case: Case) -> tuple[object, ...]:
    return (
        case.method,
        case.precision,
        case.gradient_checkpointing,
        case.train_text_encoder,
        case.train_autoencoder,
    )


def _ratio(above: Figures | None, below: Figures | None, key: str) -> str:
    return "–" if above is None or below is None else f"{above[key] / below[key]:.2f}"


def _write_picture(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed)
    pixels = numbers.integers(0, 256, (_PICTURE_SIDE, _PICTURE_SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--step-count", type=int, default=3)
    parser.add_argument("--warmup-count", type=int, default=1)
    parser.add_argument("--cases", nargs="*", default=[], help="parts of names, all of them")
    parser.add_argument("--folder", type=Path, default=Path(".cache/limner/benchmark-training"))
    parser.add_argument("--tiny", action="store_true", help="a small UNet: a smoke run")
    return parser


if __name__ == "__main__":
    main()
