"""In-flight batching against diffusers, one request at a time and in dynamic batches.

`python -m benchmarks.inflight` runs, on the same model, machine and requests:

(a) `diffusers_fifo`: diffusers' pipeline, one request at a time;
(b) `diffusers_batching`: diffusers' pipeline with request-level dynamic batching;
(c) `graph_fifo`: Limner's fastest graph, one request at a time;
    `limner`: the diffusion service through gRPC;
    `limner_int8`: the same with LIMNER_DIFFUSION_PRECISION=int8.

Closed loops at 1, 4 and 16 clients (20 steps), then Poisson arrivals of mixed length (4 to 50
steps) at two loads: moderate (70 % of what (a) can do) and high (80 % of what (c) can do). All
systems take turns, `--rounds` times, and figures are medians of the rounds: a neighbour on the same
processor slows one minute and not the next. Pause whatever else uses the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.inflight.rounds import middle
from benchmarks.inflight.workload import mean_step_count

LABELS = {
    "diffusers_fifo": "(a) diffusers, one at a time",
    "diffusers_batching": "(b) diffusers, dynamic batching",
    "graph_fifo": "(c) Limner's graph, one at a time",
    "limner": "Limner",
    "limner_int8": "Limner, 8 bits",
}
ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure every system, print the tables, write the plot and the JSON."""
    options = _options()
    common = {"model": options.model, "thread_count": options.threads}
    closed = {**common, "closed": [1, 4, 16], "job_count": options.jobs}
    systems = _take_turns(closed, options.rounds)
    # Rate and count of the arrivals; slow ones are fewer, or the benchmark would take an hour.
    loads = {
        "moderate": (0.7 * _capacity(systems["diffusers_fifo"]), options.arrivals // 3),
        "high": (0.8 * _capacity(systems["graph_fifo"]), options.arrivals),
    }
    for name, measured in _take_turns({**common, "open": loads}, options.rounds).items():
        memory_mib = max(systems[name]["memory_mib"], measured["memory_mib"])
        systems[name] |= {"label": LABELS[name], "open": measured["open"], "memory_mib": memory_mib}
    _print_tables(systems)
    aims = _aims(systems)
    print(report.table(("ratio", "measured", "aim"), _aim_rows(aims)))
    if options.plot:
        from benchmarks.inflight.plot import draw

        draw(systems, Path(options.plot))
    print(report.json_line("inflight", {"systems": systems, "ratios": aims}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inflight", description=__doc__)
    parser.add_argument("--model", default=str(ROOT / "models/limner-emoji"))
    parser.add_argument("--threads", type=int, default=2, help="compute threads of each system")
    parser.add_argument("--jobs", type=int, default=12, help="jobs of a closed loop, at least")
    parser.add_argument("--arrivals", type=int, default=100, help="jobs of an open loop")
    parser.add_argument("--rounds", type=int, default=3, help="how often each system is measured")
    parser.add_argument("--plot", help="where to write the plot, for example docs/inflight.svg")
    return parser.parse_args()


def _take_turns(task: dict[str, Any], round_count: int) -> dict[str, dict[str, Any]]:
    """What every system measured, by name."""
    rounds = [{name: _run(name, task) for name in LABELS} for _ in range(round_count)]
    return {name: middle([measured[name] for measured in rounds]) for name in LABELS}


def _run(name: str, task: dict[str, Any]) -> dict[str, Any]:
    print(f"measuring {LABELS[name]}: {'closed loops' if 'closed' in task else 'arrivals'} …")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.inflight.worker"],
        input=json.dumps({**task, "system": name}),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=True,
    )
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def _capacity(system: dict[str, Any]) -> float:
    """Jobs of the mixed traffic that a system can do a second, one at a time."""
    return float(system["closed"]["1"]["steps_per_s"]) / mean_step_count()


def _print_tables(systems: dict[str, dict[str, Any]]) -> None:
    def milliseconds(seconds: float) -> str:
        return f"{seconds * 1000:.0f}"

    rows = [
        (
            system["label"],
            concurrency,
            f"{run['images_per_s']:.2f}",
            milliseconds(run["p50_s"]),
            milliseconds(run["p99_s"]),
            milliseconds(run["first_step_p50_s"]),
        )
        for system in systems.values()
        for concurrency, run in system["closed"].items()
    ]
    _print(
        ("closed loop, 20 steps", "clients", "pictures/s", "p50 ms", "p99 ms", "first step ms"),
        rows,
    )
    _print(
        ("arrivals, 4–50 steps", "load", "p50 ms", "p99 ms", "4 steps p50", "4 steps p99"),
        [
            (
                system["label"],
                f"{load} ({run['rate_per_s']:.2f}/s)",
                *(milliseconds(run[key]) for key in ("p50_s", "p99_s")),
                *(milliseconds(run[key]) for key in ("quick_p50_s", "quick_p99_s")),
            )
            for system in systems.values()
            for load, run in system["open"].items()
        ],
    )
    _print(
        ("", "cancel to free ms", "peak memory MiB"),
        [
            (
                system["label"],
                milliseconds(system["cancel_to_free_s"]),
                f"{system['memory_mib']:.0f}",
            )
            for system in systems.values()
        ],
    )


def _print(header: Sequence[str], rows: Sequence[Sequence[report.Cell]]) -> None:
    print(report.table(header, rows), end="\n\n")


def _aims(systems: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Limner's ratios against the peers; `aim` is an upper bound for latency, a lower for rates."""
    limner = systems["limner"]

    def latency(peer: str) -> float:
        ours = limner["closed"]["1"]["p50_s"]
        return float(ours / systems[peer]["closed"]["1"]["p50_s"])

    def best_rate(system: str) -> float:
        return float(max(run["images_per_s"] for run in systems[system]["closed"].values()))

    def throughput(peer: str, ours: str = "limner") -> float:
        return best_rate(ours) / best_rate(peer)

    def tail(peer: str) -> float:
        ours = limner["open"]["high"]["quick_p99_s"]
        return float(ours / systems[peer]["open"]["high"]["quick_p99_s"])

    return {
        "single-request latency / (a)": {"measured": latency("diffusers_fifo"), "aim": 0.5},
        "saturated throughput / (a)": {"measured": throughput("diffusers_fifo"), "aim": 4.0},
        "saturated throughput in 8 bits / (a)": {
            "measured": throughput("diffusers_fifo", "limner_int8"),
            "aim": 4.0,
        },
        "saturated throughput / (c)": {"measured": throughput("graph_fifo"), "aim": 1.3},
        "p99 of 4 steps / (a)": {"measured": tail("diffusers_fifo"), "aim": 1 / 8},
        "p99 of 4 steps / (b)": {"measured": tail("diffusers_batching"), "aim": 1 / 4},
        "p99 of 4 steps / (c)": {"measured": tail("graph_fifo"), "aim": 1 / 4},
    }


def _aim_rows(aims: dict[str, dict[str, float]]) -> list[tuple[str, str, str]]:
    return [
        (
            name,
            f"{ratio['measured']:.2f}",
            f"{'≥' if ratio['aim'] > 1 else '≤'} {ratio['aim']:.2f}",
        )
        for name, ratio in aims.items()
    ]


if __name__ == "__main__":
    main()
