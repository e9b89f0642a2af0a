"""A request from acceptance to its last artifact, without protobuf: what the servicer calls.

Runs on the event loop. It validates, hands a job to the batcher, and turns the job's events into
what a client gets, encoding pictures on threads of their own. However the caller leaves (end,
error, cancellation), the job is withdrawn, so that its rows are free at the next tick.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from services.diffusion.batching import (
    Batcher,
    ImageSpec,
    Job,
    JobEvent,
    JobProgressed,
    JobQueued,
    SampleFinished,
    SamplePreviewed,
)
from services.diffusion.catalog import ModelCatalog
from services.diffusion.metrics import DiffusionMetrics
from services.diffusion.model import LoadedModel, Notice
from services.diffusion.samplers import SAMPLERS
from services.diffusion.validation import ImageRequest, ResolvedRequest, resolve
from services.imaging.encoding import EncodedImage, ImageEncoder, ImageFormatName
from services.runtime.context import RequestContext
from services.runtime.event_channel import EventChannel


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationAccepted:
    """What will be drawn, every default resolved. Always first."""

    request_id: str
    model: str
    model_revision: str
    spec: ImageSpec
    output_format: ImageFormatName
    notices: tuple[Notice, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A rough picture of a running sample."""

    index: int
    step: int
    image: EncodedImage


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A finished picture."""

    index: int
    seed: int
    image: EncodedImage


GenerationEvent: TypeAlias = GenerationAccepted | JobQueued | JobProgressed | Preview | Artifact


class ImageGeneration:
    """Serves requests for pictures from a batcher. `wake` has the device thread look for work."""

    def __init__(
        self,
        *,
        catalog: ModelCatalog,
        batcher: Batcher,
        wake: Callable[[], None],
        encoder: ImageEncoder,
        metrics: DiffusionMetrics,
    ) -> None:
        self._catalog = catalog
        self._batcher = batcher
        self._wake = wake
        self._encoder = encoder
        self._metrics = metrics

    async def generate(
        self, request: ImageRequest, context: RequestContext
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Draw what `request` asks for and yield its events, the acceptance first.

        Raises InvalidRequestError, ModelNotFoundError, QueueFullError or UnavailableError before
        the first event, ModelTooLargeError and InternalError where a trained model cannot be
        loaded; DeadlineExceededError, InternalError or UnavailableError on the way.
        """
        async with self._catalog.use(request.model, context.account) as (model, name):
            resolved = resolve(request, model)
            channel: EventChannel[JobEvent] = EventChannel()
            with channel, self._submitted(model, resolved.spec, context, channel):
                yield GenerationAccepted(
                    request_id=context.request_id,
                    model=name,
                    model_revision=model.revision,
                    spec=resolved.spec,
                    output_format=resolved.output_format,
                    notices=_notices(model, resolved.spec),
                )
                async for event in channel:
                    yield await self._delivered(event, model, resolved)

    @contextmanager
    def _submitted(
        self,
        model: LoadedModel,
        spec: ImageSpec,
        context: RequestContext,
        channel: EventChannel[JobEvent],
    ) -> Iterator[None]:
        job = Job(
            model=model,
            spec=spec,
            sink=channel,
            account=context.account,
            priority=context.priority,
            queue_share=context.queue_share,
            deadline=context.deadline,
            request_id=context.request_id,
        )
        self._batcher.submit(job)
        self._wake()
        try:
            yield
        finally:
            self._batcher.withdraw(job)
            self._wake()

    async def _delivered(
        self, event: JobEvent, model: LoadedModel, resolved: ResolvedRequest
    ) -> GenerationEvent:
        match event:
            case SampleFinished():
                started_at = time.monotonic()
                image = await self._encoder.encode(
                    event.pixels,
                    resolved.output_format,
                    text=_png_text(model, resolved.spec, event.seed),
                )
                self._metrics.stage("encode", time.monotonic() - started_at)
                return Artifact(index=event.index, seed=event.seed, image=image)
            case SamplePreviewed():
                image = await self._encoder.encode(event.pixels, "png")
                return Preview(index=event.index, step=event.step, image=image)
            case _:
                return event


def _notices(model: LoadedModel, spec: ImageSpec) -> tuple[Notice, ...]:
    notices = model.prompt_notices(spec.prompt)
    if spec.guided and spec.negative_prompt:
        notices += model.prompt_notices(spec.negative_prompt, field="negative_prompt")
    return tuple(notices)


def _png_text(model: LoadedModel, spec: ImageSpec, seed: int) -> dict[str, str]:
    """Text chunks in the layout that other programs for diffusion models read.

    Pictures are passed on without a second thought, so that the prompts stay out of them.
    """
    parameters = {
        "Steps": spec.step_count,
        "Sampler": SAMPLERS[spec.sampler].display_name,
        "CFG scale": spec.guidance_scale,
        "Seed": seed,
        "Size": f"{spec.width}x{spec.height}",
        "Model": model.name,
        "Model hash": model.revision,
    }
    listed = ", ".join(f"{name}: {value}" for name, value in parameters.items())
    return {"parameters": listed, "Software": "Limner"}
