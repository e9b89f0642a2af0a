"""Runs a workload against a system and records what happened.

The drivers know nothing of how a system works; they hand jobs over and read the clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from benchmarks.inflight.workload import Job, Record


class System(Protocol):
    """Something that draws pictures."""

    async def start(self) -> None:
        """Load the model and warm up."""

    async def draw(self, job: Job, first_step: Callable[[], None]) -> bytes:
        """Draw one picture, calling `first_step` once when its first step is done; returns a PNG.

        Cancelling the task gives the job up.
        """

    def memory_bytes(self) -> int:
        """Peak resident memory of the process that draws."""

    async def stop(self) -> None:
        """Let go of everything."""


async def closed_loop(system: System, jobs: Sequence[Job], concurrency: int) -> list[Record]:
    """`concurrency` clients, each handing over its next job when the last one is done."""
    waiting = list(reversed(jobs))
    records: list[Record] = []

    async def client() -> None:
        while waiting:
            records.append(await _timed(system, waiting.pop()))

    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client())
    return records


async def open_loop(system: System, jobs: Sequence[Job]) -> list[Record]:
    """Hands every job over when it arrives, however many are under way."""
    begin = time.perf_counter()

    async def arrival(job: Job) -> Record:
        await asyncio.sleep(begin + job.arrival_s - time.perf_counter())
        return await _timed(system, job)

    async with asyncio.TaskGroup() as arrivals:
        tasks = [arrivals.create_task(arrival(job)) for job in jobs]
    return [task.result() for task in tasks]


async def cancel_to_free(system: System, *, long: Job, quick: Job) -> float:
    """Seconds from cancelling a running `long` job to the first step of the next one."""
    running = asyncio.Event()
    task = asyncio.create_task(_discard(system, long, running.set))
    await running.wait()
    await asyncio.sleep(0.1)
    cancelled_s = time.perf_counter()
    task.cancel()
    record = await _timed(system, quick)
    await asyncio.gather(task, return_exceptions=True)
    return record.first_step_s - cancelled_s


async def _discard(system: System, job: Job, first_step: Callable[[], None]) -> None:
    await system.draw(job, first_step)


async def _timed(system: System, job: Job) -> Record:
    first_step_s = float("nan")

    def first_step() -> None:
        nonlocal first_step_s
        first_step_s = time.perf_counter()

    start_s = time.perf_counter()
    picture = await system.draw(job, first_step)
    if not picture.startswith(b"\x89PNG"):
        raise RuntimeError(f"job {job.index} came back without a picture")
    return Record(job=job, start_s=start_s, first_step_s=first_step_s, end_s=time.perf_counter())
