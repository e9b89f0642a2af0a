"""The requests that every system is given, and what is recorded of them.

Pure data: the same seed makes the same workload, so all systems draw the same pictures at the same
moments. Seconds throughout.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROMPTS = ("a red apple", "a dog face", "a slice of pizza", "a rocket", "a house", "a guitar")
# Mixed traffic: quick drafts, the default, and patient full-quality runs.
STEP_MIX = (4, 10, 20, 50)
STEP_WEIGHTS = (0.4, 0.2, 0.25, 0.15)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One picture to draw. `arrival_s` counts from the start; closed loops ignore it."""

    index: int
    step_count: int
    arrival_s: float = 0.0
    guidance_scale: float = 3.0

    @property
    def prompt(self) -> str:
        """Text of the job."""
        return PROMPTS[self.index % len(PROMPTS)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """When a job was handed over, made its first step and was done."""

    job: Job
    start_s: float
    first_step_s: float
    end_s: float

    @property
    def latency_s(self) -> float:
        """From hand-over to the finished picture."""
        return self.end_s - self.start_s

    @property
    def first_step_latency_s(self) -> float:
        """From hand-over to the first step done."""
        return self.first_step_s - self.start_s


def uniform(count: int, step_count: int) -> list[Job]:
    """`count` jobs of equal length, for closed loops."""
    return [Job(index=index, step_count=step_count) for index in range(count)]


def poisson(count: int, rate_per_s: float, *, seed: int = 0) -> list[Job]:
    """`count` jobs of mixed length that arrive at random at `rate_per_s` on average."""
    generator = random.Random(seed)
    arrival_s = 0.0
    jobs = []
    for index in range(count):
        arrival_s += generator.expovariate(rate_per_s)
        (step_count,) = generator.choices(STEP_MIX, STEP_WEIGHTS)
        jobs.append(Job(index=index, step_count=step_count, arrival_s=arrival_s))
    return jobs


def mean_step_count() -> float:
    """Mean steps of a job of the mixed traffic."""
    return sum(s * w for s, w in zip(STEP_MIX, STEP_WEIGHTS, strict=True))


def summary(records: Sequence[Record]) -> dict[str, float]:
    """Throughput and percentiles of one run; latencies in seconds."""
    latencies = np.array([record.latency_s for record in records])
    first = np.array([record.first_step_latency_s for record in records])
    quick = [record.latency_s for record in records if record.job.step_count == min(STEP_MIX)]
    span_s = max(r.end_s for r in records) - min(r.start_s for r in records)
    steps = sum(record.job.step_count for record in records)
    return {
        "images_per_s": len(records) / span_s,
        "steps_per_s": steps / span_s,
        "p50_s": float(np.percentile(latencies, 50)),
        "p99_s": float(np.percentile(latencies, 99)),
        "first_step_p50_s": float(np.percentile(first, 50)),
        "first_step_p99_s": float(np.percentile(first, 99)),
        **({"quick_p50_s": float(np.percentile(quick, 50))} if quick else {}),
        **({"quick_p99_s": float(np.percentile(quick, 99))} if quick else {}),
    }
