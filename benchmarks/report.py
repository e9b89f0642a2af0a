"""What every benchmark prints besides its figures: the machine, the commit, a table, a JSON line.

Imported by the benchmarks of this folder. It measures nothing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "diffusers", "transformers", "openvino", "onnxruntime", "numpy")
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

Cell = str | int | float


def machine() -> dict[str, object]:
    """Facts that a figure means nothing without: processor, cores, memory, load, versions."""
    return {
        "processor": _processor(),
        "core_count": os.cpu_count(),
        "cpu_features": _cpu_features(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu": _gpu(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def commit() -> str:
    """Commit of the working tree, `-dirty` where files differ from it; `none` outside git."""
    try:
        head = _git("rev-parse", "HEAD")
        return f"{head}-dirty" if _git("status", "--porcelain") else head
    except (OSError, subprocess.CalledProcessError):
        return "none"


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table; floats with one digit after the point."""
    lines = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = [
        "| "
        + " | ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def json_line(benchmark: str, results: Mapping[str, object] | Sequence[object]) -> str:
    """The last line of a benchmark's output: figures with machine and commit, for scripts."""
    return json.dumps(
        {"benchmark": benchmark, "commit": commit(), "machine": machine(), "results": results}
    )


def _cell(value: Cell) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=_ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_facts() -> dict[str, str]:
    """The first processor's entry in Linux' cpuinfo; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _processor() -> str:
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    flags = _cpu_facts().get("flags", "").split()
    return [feature for feature in _CPU_FEATURES if feature in flags]


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
