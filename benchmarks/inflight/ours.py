"""Limner as it ships, and (c) its fastest graph without in-flight batching.

(c) runs the same graph, tables and noise as the service, one request after the other, so that the
gain of batching in flight shows apart from the gain of the runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import torch

from benchmarks.inflight.queueing import Queued, Ticket, png
from benchmarks.inflight.workload import Job
from limner.v1 import generation_pb2, generation_pb2_grpc
from services.diffusion.families.loading import load_model
from services.diffusion.model import ModelSpec
from services.diffusion.noise import NoiseStream, draw_batch
from services.diffusion.samplers import advance, collate, plan, scale_input
from services.local.process import start_process
from services.local.readiness import wait_until_ready
from services.local.settings import plan_suite

NAME = "limner-emoji"


class SequentialGraph(Queued):
    """(c) The service's graph, one request at a time in order of arrival."""

    def load(self) -> None:
        """Load the graph that the service would pick."""
        torch.set_num_threads(self.thread_count)
        self.graph = load_model(
            ModelSpec(name=NAME, path_or_hub_id=self.model, thread_count=self.thread_count)
        )
        self.graph.warm_up()

    @torch.inference_mode()
    def serve(self, first: Ticket) -> None:
        """Draw one ticket, or give it up between two steps."""
        job, graph = first.job, self.graph
        table = plan("ddim", graph.schedule, job.step_count)
        defaults = graph.defaults
        noise = NoiseStream(job.index, graph.latent_shape(defaults.width, defaults.height))
        context_2LD = graph.encode_prompts(["", job.prompt])
        x = noise.draw().unsqueeze(0).to(graph.device) * table.initial_scale
        memory = torch.zeros_like(x)
        for call in range(table.call_count):
            if first.cancelled.is_set():
                return
            batch = collate([(table, call)], graph.device)
            scaled = scale_input(x, batch).expand(2, -1, -1, -1)
            output = graph.denoise(scaled, batch.timesteps_B.expand(2), context_2LD)
            guided = output[:1] + job.guidance_scale * (output[1:] - output[:1])
            fresh = draw_batch([noise], [bool(table.needs_noise[call])], graph.device)
            x, memory = advance(x, memory, guided, fresh, batch)
            if call == 0:
                first.report_first_step()
        first.finish(png(graph.decode(x)[0]))


class Limner:
    """The diffusion service as a process of its own, called through gRPC."""

    precision = "auto"

    def __init__(self, model: str, thread_count: int) -> None:
        self.model = model
        self.thread_count = thread_count

    async def start(self) -> None:
        """Start the service and wait until it is warm."""
        self._folder = tempfile.TemporaryDirectory(prefix="limner-inflight-")
        settings = plan_suite(Path(self._folder.name), port=None, models=f"{NAME}={self.model}")
        spec = settings.diffusion()
        environment = {
            **spec.environment,
            "LIMNER_DIFFUSION_THREADS": str(self.thread_count),
            "LIMNER_DIFFUSION_PRECISION": self.precision,
            "LIMNER_DIFFUSION_MAX_QUEUED_REQUESTS": "10000",
        }
        self._process = await start_process(
            replace(spec, environment=environment), Path(self._folder.name)
        )
        await wait_until_ready(spec.address, spec.health_service, lambda _state: None)
        self._channel = grpc.aio.insecure_channel(spec.address)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    async def draw(self, job: Job, first_step: Callable[[], None]) -> bytes:
        """Draw one picture through the service."""
        request = generation_pb2.GenerateImageRequest(
            model=NAME,
            prompt=job.prompt,
            step_count=job.step_count,
            guidance_scale=job.guidance_scale,
            seed=job.index,
            sampler=generation_pb2.SAMPLER_DDIM,
        )
        picture = bytearray()
        stepped = False
        async for reply in self._stub.GenerateImage(request):
            event = reply.WhichOneof("event")
            if event == "artifact":
                picture += reply.artifact.data
            if not stepped and event in ("progress", "artifact"):
                stepped = True
                first_step()
        return bytes(picture)

    def memory_bytes(self) -> int:
        """Peak resident memory of the service's process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024

    async def stop(self) -> None:
        """Drain the service."""
        await self._channel.close()
        await self._process.stop()
        self._folder.cleanup()


class LimnerEightBit(Limner):
    """The same with 8-bit convolutions, which change pictures by a level or two of 255."""

    precision = "int8"
