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
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from services.diffusion.batching import JobProgressed, JobQueued
from services.diffusion.catalog import ModelCatalog
from services.diffusion.generation import (
    Artifact,
    GenerationAccepted,
    GenerationEvent,
    ImageGeneration,
    Preview,
)
from services.diffusion.model import ImageDefaults, ImageLimits, LoadedModel, Vocabulary
from services.diffusion.validation import ImageRequest
from services.imaging.encoding import ImageFormatName
from services.runtime.context import current_request
from services.runtime.server import Service
from services.storage.catalog import CatalogEntry

CHUNK_BYTES = 256 * 1024

SAMPLERS: Mapping[str, generation_pb2.Sampler.ValueType] = MappingProxyType(
    {
        "ddim": generation_pb2.SAMPLER_DDIM,
        "euler": generation_pb2.SAMPLER_EULER,
        "euler_ancestral": generation_pb2.SAMPLER_EULER_ANCESTRAL,
        "heun": generation_pb2.SAMPLER_HEUN,
        "dpmpp_2m": generation_pb2.SAMPLER_DPMPP_2M,
        "dpmpp_2m_karras": generation_pb2.SAMPLER_DPMPP_2M_KARRAS,
        "dpmpp_sde": generation_pb2.SAMPLER_DPMPP_SDE,
        "lcm": generation_pb2.SAMPLER_LCM,
    }
)
FORMATS: Mapping[ImageFormatName, artifact_pb2.ImageFormat.ValueType] = MappingProxyType(
    {
        "png": artifact_pb2.IMAGE_FORMAT_PNG,
        "jpeg": artifact_pb2.IMAGE_FORMAT_JPEG,
        "webp": artifact_pb2.IMAGE_FORMAT_WEBP,
    }
)

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Makes pictures from prompts."""

    def __init__(self, generation: ImageGeneration) -> None:
        self._generation = generation

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to `server`."""
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, server)

    async def GenerateImage(
        self, request: generation_pb2.GenerateImageRequest, context: _Context
    ) -> AsyncGenerator[generation_pb2.GenerateImageResponse, None]:
        """See `generation.proto`."""
        events = self._generation.generate(parse_request(request), current_request())
        async with aclosing(events):
            async for event in events:
                for response in _responses(event):
                    yield response


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Describes the models."""

    def __init__(self, catalog: ModelCatalog) -> None:
        self._catalog = catalog

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to `server`."""
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, server)

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: _Context
    ) -> model_pb2.ListModelsResponse:
        """See `model.proto`."""
        models = [_model(model) for model in self._catalog.all()]
        trained = await self._catalog.trained(current_request().account)
        models += [_trained_model(entry, base) for entry, base in trained]
        return model_pb2.ListModelsResponse(models=models)


def grpc_services(generation: ImageGeneration, catalog: ModelCatalog) -> list[Service]:
    """Return what the process offers, ready for `GrpcServer`."""
    return [
        Service(
            name=generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
            register=GenerationServicer(generation).register,
        ),
        Service(
            name=model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
            register=ModelServicer(catalog).register,
        ),
    ]


def parse_request(message: generation_pb2.GenerateImageRequest) -> ImageRequest:
    """Take a message apart. An enum number that nobody knows becomes a name that nobody knows."""
    return ImageRequest(
        model=message.model,
        prompt=message.prompt,
        negative_prompt=message.negative_prompt,
        width=message.width if message.HasField("width") else None,
        height=message.height if message.HasField("height") else None,
        step_count=message.step_count if message.HasField("step_count") else None,
        guidance_scale=message.guidance_scale if message.HasField("guidance_scale") else None,
        seed=message.seed if message.HasField("seed") else None,
        sampler=_name_of(message.sampler, SAMPLERS),
        sample_count=message.sample_count if message.HasField("sample_count") else None,
        output_format=_name_of(message.output_format, FORMATS),
        preview_interval=message.preview_interval,
    )


def _name_of(number: int, names: Mapping[Any, Any]) -> str | None:
    if number == 0:
        return None
    return next((str(name) for name, known in names.items() if known == number), str(number))


def _responses(event: GenerationEvent) -> Iterator[generation_pb2.GenerateImageResponse]:
    match event:
        case GenerationAccepted():
            yield generation_pb2.GenerateImageResponse(accepted=_accepted(event))
        case JobQueued():
            queued = generation_pb2.Queued(position=event.position)
            yield generation_pb2.GenerateImageResponse(queued=queued)
        case JobProgressed():
            progress = generation_pb2.Progress(
                completed_step_count=event.completed_step_count,
                total_step_count=event.total_step_count,
            )
            yield generation_pb2.GenerateImageResponse(progress=progress)
        case Preview():
            preview = generation_pb2.Preview(
                index=event.index,
                step=event.step,
                image=event.image.data,
                mime_type=event.image.mime_type,
            )
            yield generation_pb2.GenerateImageResponse(preview=preview)
        case Artifact():
            for chunk in _chunks(event):
                yield generation_pb2.GenerateImageResponse(artifact=chunk)


def _accepted(event: GenerationAccepted) -> generation_pb2.Accepted:
    spec = event.spec
    return generation_pb2.Accepted(
        request_id=event.request_id,
        model=event.model,
        model_revision=event.model_revision,
        width=spec.width,
        height=spec.height,
        step_count=spec.step_count,
        guidance_scale=spec.guidance_scale,
        seed=spec.seed,
        sampler=SAMPLERS[spec.sampler],
        sample_count=spec.sample_count,
        output_format=FORMATS[event.output_format],
        notices=[
            generation_pb2.Notice(code=notice.code, message=notice.message, field=notice.field)
            for notice in event.notices
        ],
    )


def _chunks(artifact: Artifact) -> Iterator[artifact_pb2.ArtifactChunk]:
    image = artifact.image
    info = artifact_pb2.ArtifactInfo(
        seed=artifact.seed,
        mime_type=image.mime_type,
        width=image.width,
        height=image.height,
        size_bytes=len(image.data),
    )
    for start in range(0, len(image.data), CHUNK_BYTES):
        end = start + CHUNK_BYTES
        yield artifact_pb2.ArtifactChunk(
            index=artifact.index,
            info=info if start == 0 else None,
            data=image.data[start:end],
            last=end >= len(image.data),
        )


def _model(model: LoadedModel) -> model_pb2.Model:
    return model_pb2.Model(
        name=model.name,
        display_name=model.display_name,
        revision=model.revision,
        description=model.description,
        family=model.family,
        license=model.license,
        tasks=[model_pb2.TASK_TEXT_TO_IMAGE],
        samplers=[SAMPLERS[name] for name in model.samplers],
        limits=_limits(model.limits),
        defaults=_defaults(model.defaults),
        vocabulary=_vocabulary(model.vocabulary) if model.vocabulary else None,
    )


def _trained_model(entry: CatalogEntry, base: LoadedModel) -> model_pb2.Model:
    """As its base, but for what it is called and where it comes from."""
    message = _model(base)
    message.name = message.display_name = entry.name
    message.revision = entry.revision
    message.base_model = entry.base_model
    message.description = (
        f"Trained from {entry.base_model} by {entry.method}; its word is {entry.token}."
    )
    return message


def _limits(limits: ImageLimits) -> model_pb2.ImageLimits:
    return model_pb2.ImageLimits(
        min_side=limits.min_side,
        max_side=limits.max_side,
        side_multiple=limits.side_multiple,
        max_pixel_count=limits.max_pixel_count,
        min_step_count=limits.min_step_count,
        max_step_count=limits.max_step_count,
        min_guidance_scale=limits.min_guidance_scale,
        max_guidance_scale=limits.max_guidance_scale,
        max_sample_count=limits.max_sample_count,
        max_prompt_length=limits.max_prompt_length,
    )


def _defaults(defaults: ImageDefaults) -> model_pb2.ImageDefaults:
    return model_pb2.ImageDefaults(
        width=defaults.width,
        height=defaults.height,
        step_count=defaults.step_count,
        guidance_scale=defaults.guidance_scale,
        sampler=SAMPLERS[defaults.sampler],
    )


def _vocabulary(vocabulary: Vocabulary) -> model_pb2.Vocabulary:
    return model_pb2.Vocabulary(
        concepts=vocabulary.concepts,
        styles=vocabulary.styles,
        backgrounds=vocabulary.backgrounds,
    )
