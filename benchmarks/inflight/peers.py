"""What a user would pick instead: diffusers' pipeline, one at a time or in dynamic batches.

Both get the faster of diffusers' precisions on this device (measured at load) and interrupt a
cancelled call where the pipeline allows it, which is more than most services do.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from benchmarks.inflight.queueing import Queued, Ticket, png
from benchmarks.inflight.workload import PROMPTS

BATCH_WINDOW_S = 0.05
MAX_BATCH = 8


class DiffusersFifo(Queued):
    """(a) One pipeline call for each request, in order of arrival."""

    device = "cpu"

    def load(self) -> None:
        """Load the pipeline in the precision that is faster here."""
        for library in (diffusers_logging, transformers_logging):
            library.set_verbosity_error()
            library.disable_progress_bar()
        torch.set_num_threads(self.thread_count)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        candidates = [torch.float32, torch.bfloat16]
        timings = {dtype: self._time(dtype) for dtype in candidates}
        self.dtype = min(timings, key=lambda dtype: timings[dtype])
        self.pipe = self._pipe(self.dtype)
        self._call([PROMPTS[0]], [0], 4)

    def _time(self, dtype: torch.dtype) -> float:
        self.pipe = self._pipe(dtype)
        self._call([PROMPTS[0]], [0], 2)
        begin = time.perf_counter()
        self._call([PROMPTS[0]], [0], 6)
        return time.perf_counter() - begin

    def _pipe(self, dtype: torch.dtype) -> Any:
        load: Any = StableDiffusionPipeline.from_pretrained  # diffusers has no annotations
        pipe = load(self.model, dtype=dtype).to(self.device)
        configure: Any = DDIMScheduler.from_config
        pipe.scheduler = configure(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def serve(self, first: Ticket) -> None:
        """Draw one ticket."""
        self._draw([first])

    def _draw(self, tickets: list[Ticket]) -> None:
        job = tickets[0].job

        def on_step(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == 0:
                for ticket in tickets:
                    ticket.report_first_step()
            if all(ticket.cancelled.is_set() for ticket in tickets):
                pipe._interrupt = True
            return tensors

        pictures = self._call(
            [ticket.job.prompt for ticket in tickets],
            [ticket.job.index for ticket in tickets],
            job.step_count,
            guidance_scale=job.guidance_scale,
            callback_on_step_end=on_step,
        )
        for ticket, picture in zip(tickets, pictures, strict=True):
            ticket.finish(png(picture))

    def _call(self, prompts: list[str], seeds: list[int], step_count: int, **more: Any) -> Any:
        images = self.pipe(
            prompts,
            num_inference_steps=step_count,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
            **more,
        ).images
        return (images * 255).round().astype("uint8")


class DiffusersDynamicBatching(DiffusersFifo):
    """(b) Requests that wait with the same step count share one pipeline call.

    A call waits up to 50 ms for company and takes up to 8, the usual settings of request-level
    dynamic batching. Requests of another length wait for the next call.
    """

    def serve(self, first: Ticket) -> None:
        """Draw `first` with those that match it."""
        batch: list[Ticket] = [first]
        others: list[Ticket] = []
        end_s = time.monotonic() + BATCH_WINDOW_S
        while len(batch) < MAX_BATCH:
            ticket = self.waiting(max(0.0, end_s - time.monotonic()))
            if ticket is None:
                break
            if ticket.cancelled.is_set():
                continue
            matches = (ticket.job.step_count, ticket.job.guidance_scale) == (
                first.job.step_count,
                first.job.guidance_scale,
            )
            (batch if matches else others).append(ticket)
        self.put_back(others)
        self._draw(batch)
