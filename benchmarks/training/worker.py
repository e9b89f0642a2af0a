"""One case in a process of its own, so that its memory is its own: JSON on the last line.

Started by `benchmarks.training` with the case, the workload and the folder of model and pictures.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.training.case import Case, Workload


def main() -> None:
    """Measure."""
    logging.disable(logging.WARNING)
    case, workload = Case.from_json(sys.argv[1]), Workload.from_json(sys.argv[2])
    folder = Path(sys.argv[3])
    paths = (folder / "model", folder / "photographs", folder / "classes")
    ends: list[float] = []
    last = workload.warmup_count + workload.step_count

    def after_step(step: int) -> bool:
        ends.append(time.perf_counter())
        return step < last

    if case.trainer == "limner":
        from benchmarks.training.ours import run_steps

        with tempfile.TemporaryDirectory() as output:
            run_steps(case, workload, *paths, Path(output) / "run", after_step)
    else:
        from benchmarks.training.peer import Peer

        peer = Peer(case, workload, *paths)
        for step in range(1, last + 1):
            peer.step()
            after_step(step)
    seconds = ends[-1] - ends[workload.warmup_count - 1]
    answer = {
        "seconds_per_step": seconds / workload.step_count,
        "peak_mib": _peak_mib(),
    }
    print(json.dumps(answer), flush=True)


def _peak_mib() -> float:
    """Largest resident memory; `ru_maxrss` would count the parent's at the start, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
