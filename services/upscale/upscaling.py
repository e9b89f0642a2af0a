"""A request from acceptance to its artifact, without protobuf: what the servicer calls.

Runs on the event loop; decoding and encoding have threads of their own. It validates, finds a place
for the picture, hands a job to the batcher, and turns the job's bands into a file. However the
caller leaves (end, error, cancellation), the job is withdrawn and its place given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeAlias, TypeVar

from services.imaging.band_encoding import PictureLayout, open_band_encoder
from services.imaging.decoding import DecodedImage, decode_image
from services.imaging.encoding import EncodedImage
from services.imaging.header import UnusableImageError
from services.runtime.context import RequestContext
from services.runtime.errors import InvalidRequestError, LimnerError
from services.runtime.event_channel import EventChannel
from services.upscale.batching import (
    BandFinished,
    Batcher,
    Job,
    JobEvent,
    JobQueued,
    Reservation,
    TilesProgressed,
    plan_tiles,
)
from services.upscale.batching.source import Source
from services.upscale.catalog import UpscalerCatalog
from services.upscale.metrics import UpscaleMetrics
from services.upscale.model import LoadedUpscaler
from services.upscale.validation import (
    Checked,
    ResolvedUpscale,
    UpscaleRequest,
    check,
    image_violation,
    max_source_pixels,
)

P = ParamSpec("P")
R = TypeVar("R")

NoticeCode = Literal["REDUCED_TO_8_BITS", "CONVERTED_TO_SRGB", "ALPHA_FLATTENED"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscaleAccepted:
    """What will be made, every default resolved. Always first."""

    request_id: str
    model: str
    model_revision: str
    resolved: ResolvedUpscale
    tile_count: int
    notices: tuple[NoticeCode, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """The finished picture."""

    image: EncodedImage


UpscaleEvent: TypeAlias = UpscaleAccepted | JobQueued | TilesProgressed | Artifact


class CodecThreads:
    """Runs codecs off the event loop; closed with `close`."""

    def __init__(self, thread_count: int = 2) -> None:
        self._pool = ThreadPoolExecutor(thread_count, thread_name_prefix="codec")

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Await what `function` returns on a thread of the pool, or raises there."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Let the threads end after what they do now; nothing more can be run."""
        self._pool.shutdown(cancel_futures=True)


class ImageUpscaling:
    """Serves requests from a batcher. `wake` has the device thread look for work."""

    def __init__(
        self,
        *,
        catalog: UpscalerCatalog,
        batcher: Batcher,
        wake: Callable[[], None],
        codecs: CodecThreads,
        metrics: UpscaleMetrics,
        max_output_pixels: int,
    ) -> None:
        self._catalog = catalog
        self._batcher = batcher
        self._wake = wake
        self._codecs = codecs
        self._metrics = metrics
        self.max_output_pixels = max_output_pixels

    async def upscale(
        self, request: UpscaleRequest, context: RequestContext
    ) -> AsyncGenerator[UpscaleEvent, None]:
        """Make what `request` asks for and yield its events, the acceptance first.

        Raises InvalidRequestError, ModelNotFoundError, QueueFullError or UnavailableError before
        the first event; DeadlineExceededError, InternalError or UnavailableError on the way.
        """
        model = self._catalog.find(request.model)
        checked = check(request, model, max_output_pixels=self.max_output_pixels)
        with self._reserved(checked, model, context) as reservation:
            image = await self._decoded(request.image, checked, model)
            resolved = checked.require()
            # A new strength is exported first: not on the device thread, where others would wait.
            await asyncio.to_thread(model.prepare, resolved.denoise_strength)
            channel: EventChannel[JobEvent] = EventChannel()
            with (
                channel,
                self._submitted(model, resolved, image, context, channel, reservation) as job,
            ):
                yield UpscaleAccepted(
                    request_id=context.request_id,
                    model=model.name,
                    model_revision=model.revision,
                    resolved=resolved,
                    tile_count=job.plan.tile_count,
                    notices=_notices(image, resolved),
                )
                layout = _layout(image, resolved)
                del image
                async for event in self._run(job, layout, resolved, channel):
                    yield event

    @contextmanager
    def _reserved(
        self, checked: Checked, model: LoadedUpscaler, context: RequestContext
    ) -> Iterator[Reservation]:
        """Hold a place for the output; for an invalid request one for its source."""
        if checked.resolved is not None:
            pixel_count = checked.resolved.pixel_count
        elif checked.header is not None:
            limit = max_source_pixels(model, self.max_output_pixels)
            pixel_count = min(checked.header.pixel_count, limit)
        else:
            checked.require()
            raise AssertionError("a request without a usable header is invalid")
        try:
            reservation = self._batcher.reserve(pixel_count, queue_share=context.queue_share)
        except LimnerError:
            self._metrics.image(model.name, "rejected", pixel_count)
            raise
        with reservation:
            yield reservation

    async def _decoded(self, data: bytes, checked: Checked, model: LoadedUpscaler) -> DecodedImage:
        """Decode the file; whatever is wrong with it is told together with all else."""
        limit = max_source_pixels(model, self.max_output_pixels)
        started_at = time.monotonic()
        try:
            return await self._codecs.run(decode_image, data, max_pixel_count=limit)
        except UnusableImageError as error:
            found = image_violation(error)
            known = [v for v in checked.violations if v.field != "image"]
            raise InvalidRequestError([found, *known]) from error
        finally:
            self._metrics.stage("decode", time.monotonic() - started_at)

    @contextmanager
    def _submitted(
        self,
        model: LoadedUpscaler,
        resolved: ResolvedUpscale,
        image: DecodedImage,
        context: RequestContext,
        channel: EventChannel[JobEvent],
        reservation: Reservation,
    ) -> Iterator[Job]:
        job = Job(
            model=model,
            denoise_strength=resolved.denoise_strength,
            source=Source(image.pixels),
            plan=plan_tiles(
                width=resolved.source_width,
                height=resolved.source_height,
                out_width=resolved.width,
                out_height=resolved.height,
                tiling=model.tiling,
            ),
            sink=channel,
            reservation=reservation,
            account=context.account,
            priority=context.priority,
            deadline=context.deadline,
            request_id=context.request_id,
        )
        self._batcher.submit(job)
        self._wake()
        try:
            yield job
        finally:
            self._batcher.withdraw(job)
            self._wake()

    async def _run(
        self,
        job: Job,
        layout: PictureLayout,
        resolved: ResolvedUpscale,
        channel: EventChannel[JobEvent],
    ) -> AsyncGenerator[UpscaleEvent, None]:
        encoder = open_band_encoder(layout, resolved.output_format)
        encoding_s = 0.0
        async for event in channel:
            if isinstance(event, BandFinished):
                started_at = time.monotonic()
                await self._codecs.run(encoder.write, event.pixels)
                encoding_s += time.monotonic() - started_at
                self._batcher.band_consumed(job)
                self._wake()
            else:
                yield event
        started_at = time.monotonic()
        file = await self._codecs.run(encoder.finish)
        self._metrics.stage("encode", encoding_s + time.monotonic() - started_at)
        yield Artifact(image=file)


def _layout(image: DecodedImage, resolved: ResolvedUpscale) -> PictureLayout:
    return PictureLayout(
        width=resolved.width,
        height=resolved.height,
        channel_count=image.pixels.shape[2],
        icc_profile=image.icc_profile,
    )


def _notices(image: DecodedImage, resolved: ResolvedUpscale) -> tuple[NoticeCode, ...]:
    flattened: tuple[NoticeCode, ...] = ()
    if image.has_alpha and resolved.output_format == "jpeg":
        flattened = ("ALPHA_FLATTENED",)
    return (*image.remarks, *flattened)
