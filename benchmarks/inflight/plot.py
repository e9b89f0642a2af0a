"""Draws the benchmark's figures: throughput by concurrency, and the tail under mixed arrivals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"limner": "#c2410c", "graph_fifo": "#78716c", "diffusers_fifo": "#0369a1"}


def draw(systems: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the plot of all systems' results to `path` (SVG or PNG by its suffix)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, result in systems.items():
        colour = COLOURS.get(name, "#a16207")
        closed = result["closed"]
        counts = [int(count) for count in closed]
        left.plot(
            counts,
            [closed[str(count)]["images_per_s"] for count in counts],
            marker="o",
            label=result["label"],
            color=colour,
        )
        for load, run in result["open"].items():
            style = "-" if load == "high" else "--"
            ordered = sorted(run["quick_latencies_s"])
            share = [(index + 1) / len(ordered) for index in range(len(ordered))]
            right.step(ordered, share, style, where="post", color=colour)
    left.set(xscale="log", xlabel="concurrent clients (20 steps)", ylabel="pictures a second")
    left.set_xticks(counts, [str(count) for count in counts])
    left.legend(frameon=False)
    right.set(
        xscale="log",
        xlabel="seconds for 4 steps among mixed requests\n(solid: high load, dashed: moderate)",
        ylabel="share of requests",
    )
    for axis in (left, right):
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
