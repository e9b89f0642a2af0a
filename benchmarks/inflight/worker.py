"""Measures one system in a process of its own; `__main__` starts it and reads one JSON object.

Called as `python -m benchmarks.inflight.worker` with a JSON task on standard input.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from typing import Any

from benchmarks.inflight.drive import System, cancel_to_free, closed_loop, open_loop
from benchmarks.inflight.ours import Limner, LimnerEightBit, SequentialGraph
from benchmarks.inflight.peers import DiffusersDynamicBatching, DiffusersFifo
from benchmarks.inflight.workload import STEP_MIX, Job, poisson, summary, uniform

SYSTEMS: dict[str, type[Limner | SequentialGraph | DiffusersFifo]] = {
    "diffusers_fifo": DiffusersFifo,
    "diffusers_batching": DiffusersDynamicBatching,
    "graph_fifo": SequentialGraph,
    "limner": Limner,
    "limner_int8": LimnerEightBit,
}
CLOSED_STEP_COUNT = 20


async def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Run the task's phases: `closed` loops with cancels, or `open` arrivals."""
    system: System = SYSTEMS[task["system"]](task["model"], task["thread_count"])
    await system.start()
    try:
        result = await _closed(system, task) if "closed" in task else await _open(system, task)
        return {**result, "memory_mib": round(system.memory_bytes() / 2**20)}
    finally:
        await system.stop()


async def _closed(system: System, task: dict[str, Any]) -> dict[str, Any]:
    await closed_loop(system, uniform(2, CLOSED_STEP_COUNT), 1)
    closed = {}
    for concurrency in task["closed"]:
        jobs = uniform(max(task["job_count"], 2 * concurrency), CLOSED_STEP_COUNT)
        closed[str(concurrency)] = summary(await closed_loop(system, jobs, concurrency))
    cancels = [
        await cancel_to_free(
            system, long=Job(index=0, step_count=100), quick=Job(index=1, step_count=4)
        )
        for _ in range(5)
    ]
    return {"closed": closed, "cancel_to_free_s": statistics.median(cancels)}


async def _open(system: System, task: dict[str, Any]) -> dict[str, Any]:
    await closed_loop(system, uniform(2, CLOSED_STEP_COUNT), 1)
    runs = {}
    for load, (rate_per_s, job_count) in task["open"].items():
        records = await open_loop(system, poisson(job_count, rate_per_s))
        quick = [r.latency_s for r in records if r.job.step_count == min(STEP_MIX)]
        runs[load] = {**summary(records), "rate_per_s": rate_per_s, "quick_latencies_s": quick}
    return {"open": runs}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(json.load(sys.stdin)))))
