"""Prompts of jobs that start in the same tick, encoded in one call of the text encoder.

Called by the batcher. What recurs comes from the model's own cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from services.diffusion.batching.job import Job


def encode_jobs(jobs: Sequence[Job]) -> list[Tensor]:
    """Encode the prompts of `jobs`, all of one model.

    Returns for each job (2, L, D), conditional and unconditional, or (1, L, D) without guidance.
    """
    places: dict[str, int] = {}
    for job in jobs:
        for prompt in _prompts(job):
            places.setdefault(prompt, len(places))
    encoded = jobs[0].model.encode_prompts(list(places))
    return [encoded[[places[prompt] for prompt in _prompts(job)]] for job in jobs]


def _prompts(job: Job) -> list[str]:
    spec = job.spec
    return [spec.prompt, spec.negative_prompt] if spec.guided else [spec.prompt]
