"""gRPC in, gRPC out: the only module of the service that knows protobuf.

Handlers parse, await and yield; errors are raised for the interceptor to map.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Any, TypeAlias

import grpc

from limner.v1 import (
    artifact_pb2,
    generation_pb2,
    model_pb2,
    model_pb2_grpc,
    upscale_pb2,
    upscale_pb2_grpc,
)
from services.imaging.encoding import EncodedImage, ImageFormatName
from services.runtime.context import current_request
from services.runtime.server import Service
from services.upscale.batching import JobQueued, TilesProgressed
from services.upscale.catalog import UpscalerCatalog
from services.upscale.model import LoadedUpscaler, PictureKind
from services.upscale.upscaling import (
    Artifact,
    ImageUpscaling,
    NoticeCode,
    UpscaleAccepted,
    UpscaleEvent,
)
from services.upscale.validation import UpscaleRequest, scale_range

CHUNK_BYTES = 256 * 1024

FORMATS: Mapping[ImageFormatName, artifact_pb2.ImageFormat.ValueType] = MappingProxyType(
    {
        "png": artifact_pb2.IMAGE_FORMAT_PNG,
        "jpeg": artifact_pb2.IMAGE_FORMAT_JPEG,
        "webp": artifact_pb2.IMAGE_FORMAT_WEBP,
    }
)
KINDS: Mapping[PictureKind, model_pb2.PictureKind.ValueType] = MappingProxyType(
    {
        "photo": model_pb2.PICTURE_KIND_PHOTO,
        "illustration": model_pb2.PICTURE_KIND_ILLUSTRATION,
    }
)
NOTICES: Mapping[NoticeCode, tuple[str, str]] = MappingProxyType(
    {
        "REDUCED_TO_8_BITS": ("image", "The source has 16 bits a channel; 8 of them are used."),
        "CONVERTED_TO_SRGB": ("image", "The source is CMYK; the artifact is sRGB."),
        "ALPHA_FLATTENED": (
            "output_format",
            "JPEG has no transparency; the picture lies on white.",
        ),
    }
)

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class UpscaleServicer(upscale_pb2_grpc.UpscaleServiceServicer):
    """Makes pictures larger."""

    def __init__(self, upscaling: ImageUpscaling) -> None:
        self._upscaling = upscaling

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to `server`."""
        upscale_pb2_grpc.add_UpscaleServiceServicer_to_server(self, server)

    async def UpscaleImage(
        self, request: upscale_pb2.UpscaleImageRequest, context: _Context
    ) -> AsyncGenerator[upscale_pb2.UpscaleImageResponse, None]:
        """See `upscale.proto`."""
        events = self._upscaling.upscale(parse_request(request), current_request())
        async with aclosing(events):
            async for event in events:
                for response in _responses(event):
                    yield response


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Describes the models."""

    def __init__(self, catalog: UpscalerCatalog, *, max_output_pixels: int) -> None:
        self._catalog = catalog
        self._max_output_pixels = max_output_pixels

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to `server`."""
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, server)

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: _Context
    ) -> model_pb2.ListModelsResponse:
        """See `model.proto`."""
        models = [_model(model, self._max_output_pixels) for model in self._catalog.all()]
        for model in models:
            model.is_default = model.name == self._catalog.default_name
        return model_pb2.ListModelsResponse(models=models)


def grpc_services(upscaling: ImageUpscaling, catalog: UpscalerCatalog) -> list[Service]:
    """Return what the process offers, ready for `GrpcServer`."""
    models = ModelServicer(catalog, max_output_pixels=upscaling.max_output_pixels)
    return [
        Service(
            name=upscale_pb2.DESCRIPTOR.services_by_name["UpscaleService"].full_name,
            register=UpscaleServicer(upscaling).register,
        ),
        Service(
            name=model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
            register=models.register,
        ),
    ]


def parse_request(message: upscale_pb2.UpscaleImageRequest) -> UpscaleRequest:
    """Take a message apart. An enum number that nobody knows becomes a name that nobody knows."""
    has_strength = message.HasField("denoise_strength")
    return UpscaleRequest(
        model=message.model,
        image=message.image,
        scale=message.scale if message.HasField("scale") else None,
        output_format=_format_name(message.output_format),
        denoise_strength=message.denoise_strength if has_strength else None,
    )


def _format_name(number: int) -> str | None:
    if number == 0:
        return None
    return next((name for name, known in FORMATS.items() if known == number), str(number))


def _responses(event: UpscaleEvent) -> Iterator[upscale_pb2.UpscaleImageResponse]:
    match event:
        case UpscaleAccepted():
            yield upscale_pb2.UpscaleImageResponse(accepted=_accepted(event))
        case JobQueued():
            queued = generation_pb2.Queued(position=event.position)
            yield upscale_pb2.UpscaleImageResponse(queued=queued)
        case TilesProgressed():
            progress = upscale_pb2.TileProgress(
                completed_tile_count=event.completed_tile_count,
                total_tile_count=event.total_tile_count,
            )
            yield upscale_pb2.UpscaleImageResponse(progress=progress)
        case Artifact():
            for chunk in _chunks(event.image):
                yield upscale_pb2.UpscaleImageResponse(artifact=chunk)


def _accepted(event: UpscaleAccepted) -> upscale_pb2.UpscaleAccepted:
    resolved = event.resolved
    return upscale_pb2.UpscaleAccepted(
        request_id=event.request_id,
        model=event.model,
        model_revision=event.model_revision,
        source_width=resolved.source_width,
        source_height=resolved.source_height,
        width=resolved.width,
        height=resolved.height,
        scale=resolved.scale,
        output_format=FORMATS[resolved.output_format],
        denoise_strength=resolved.denoise_strength,
        tile_count=event.tile_count,
        notices=[
            generation_pb2.Notice(code=code, field=NOTICES[code][0], message=NOTICES[code][1])
            for code in event.notices
        ],
    )


def _chunks(image: EncodedImage) -> Iterator[artifact_pb2.ArtifactChunk]:
    info = artifact_pb2.ArtifactInfo(
        mime_type=image.mime_type,
        width=image.width,
        height=image.height,
        size_bytes=len(image.data),
    )
    for start in range(0, len(image.data), CHUNK_BYTES):
        end = start + CHUNK_BYTES
        yield artifact_pb2.ArtifactChunk(
            index=0,
            info=info if start == 0 else None,
            data=image.data[start:end],
            last=end >= len(image.data),
        )


def _model(model: LoadedUpscaler, max_output_pixels: int) -> model_pb2.Model:
    lowest, highest = scale_range(model)
    return model_pb2.Model(
        name=model.name,
        display_name=model.display_name,
        revision=model.revision,
        description=model.description,
        family=model.family,
        license=model.license,
        tasks=[model_pb2.TASK_UPSCALE],
        upscale_limits=model_pb2.UpscaleLimits(
            min_scale=lowest,
            max_scale=highest,
            max_output_pixel_count=max_output_pixels,
            picture_kinds=[KINDS[kind] for kind in model.picture_kinds],
            default_denoise_strength=model.default_denoise_strength,
        ),
    )
