"""A contender in a process of its own, so that its memory is its own: one line in, one line out.

Started by `benchmarks.upscale`. A line on standard input is a concurrency; the answer is a JSON
object with the seconds, the latency of each picture and the largest memory so far.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from benchmarks.upscale.contenders import open_contender
from benchmarks.upscale.workload import pictures
from services.upscale.weights.library import find_entries


def main() -> None:
    """Serve rounds until the input ends."""
    name, model, folder, cache_dir, threads, count = sys.argv[1:]
    entry = find_entries([Path(folder)])[model]
    run = open_contender(name, entry, thread_count=int(threads), cache_dir=Path(cache_dir))
    sources = pictures(int(count))
    run(sources, 1)  # shapes are met for the first time
    print("ready", flush=True)
    for line in sys.stdin:
        started_at = time.perf_counter()
        latencies = run(sources, int(line))
        answer = {
            "seconds": time.perf_counter() - started_at,
            "latencies": latencies,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
