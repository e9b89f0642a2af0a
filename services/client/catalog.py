"""Models and the account as frozen data, read from `limner.v1`.

Returned by `models()` and `account()` of both clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from limner.v1 import account_pb2, model_pb2
from services.client.enum_names import PICTURE_KINDS, SAMPLERS, SCOPES, TASKS


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """Limits of image requests; all bounds are inclusive, sides are in pixels."""

    min_side: int
    max_side: int
    side_multiple: int
    max_pixel_count: int
    min_step_count: int
    max_step_count: int
    min_guidance_scale: float
    max_guidance_scale: float
    max_sample_count: int
    max_prompt_length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDefaults:
    """Values used where a request leaves them out."""

    width: int
    height: int
    step_count: int
    guidance_scale: float
    sampler: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The words of a model that was trained on a closed set of them."""

    concepts: tuple[str, ...]
    styles: tuple[str, ...]
    backgrounds: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscaleLimits:
    """Limits of upscaling requests; all bounds are inclusive."""

    min_scale: float
    max_scale: float
    max_output_pixel_count: int
    picture_kinds: tuple[str, ...]
    """What the model was trained on: `photo`, `illustration`."""
    default_denoise_strength: float | None
    """None for a model that has no choice of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that requests can name."""

    name: str
    display_name: str
    revision: str
    description: str
    family: str
    license: str
    tasks: tuple[str, ...]
    samplers: tuple[str, ...]
    limits: ImageLimits | None
    """None for a model that does not draw."""
    defaults: ImageDefaults | None
    """None for a model that does not draw."""
    vocabulary: Vocabulary | None
    """None for a model with an open vocabulary."""
    upscale_limits: UpscaleLimits | None = None
    """None for a model that does not upscale."""
    base_model: str = ""
    """What the account trained it from; empty for a model of the server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """The account behind the calling key."""

    account: str
    key_id: str
    """Public id of the key."""
    key_create_time: datetime | None
    """When the key was created, in UTC."""
    tier: str
    """Name of the account's tier."""
    scopes: tuple[str, ...]
    """What the key may be used for."""


def read_models(response: model_pb2.ListModelsResponse) -> tuple[Model, ...]:
    """Return the models of an answer, in its order: sorted by name."""
    return tuple(_model(message) for message in response.models)


def read_account(response: account_pb2.GetAccountResponse) -> Account:
    """Return the account of an answer."""
    created = None
    if response.HasField("key_create_time"):
        created = response.key_create_time.ToDatetime(tzinfo=UTC)
    return Account(
        account=response.account,
        key_id=response.key_id,
        key_create_time=created,
        tier=response.tier,
        scopes=tuple(SCOPES.name(scope) for scope in response.scopes),
    )


def _model(message: model_pb2.Model) -> Model:
    upscales = message.HasField("upscale_limits")
    draws = not upscales or message.HasField("limits")
    return Model(
        name=message.name,
        display_name=message.display_name,
        revision=message.revision,
        description=message.description,
        family=message.family,
        license=message.license,
        tasks=tuple(TASKS.name(task) for task in message.tasks),
        samplers=tuple(SAMPLERS.name(sampler) for sampler in message.samplers),
        limits=_limits(message.limits) if draws else None,
        defaults=_defaults(message.defaults) if draws else None,
        vocabulary=_vocabulary(message.vocabulary) if message.HasField("vocabulary") else None,
        upscale_limits=_upscale_limits(message.upscale_limits) if upscales else None,
        base_model=message.base_model,
    )


def _limits(message: model_pb2.ImageLimits) -> ImageLimits:
    return ImageLimits(
        min_side=message.min_side,
        max_side=message.max_side,
        side_multiple=message.side_multiple,
        max_pixel_count=message.max_pixel_count,
        min_step_count=message.min_step_count,
        max_step_count=message.max_step_count,
        min_guidance_scale=message.min_guidance_scale,
        max_guidance_scale=message.max_guidance_scale,
        max_sample_count=message.max_sample_count,
        max_prompt_length=message.max_prompt_length,
    )


def _upscale_limits(message: model_pb2.UpscaleLimits) -> UpscaleLimits:
    has_strength = message.HasField("default_denoise_strength")
    return UpscaleLimits(
        min_scale=message.min_scale,
        max_scale=message.max_scale,
        max_output_pixel_count=message.max_output_pixel_count,
        picture_kinds=tuple(PICTURE_KINDS.name(kind) for kind in message.picture_kinds),
        default_denoise_strength=message.default_denoise_strength if has_strength else None,
    )


def _defaults(message: model_pb2.ImageDefaults) -> ImageDefaults:
    return ImageDefaults(
        width=message.width,
        height=message.height,
        step_count=message.step_count,
        guidance_scale=message.guidance_scale,
        sampler=SAMPLERS.name(message.sampler),
    )


def _vocabulary(message: model_pb2.Vocabulary) -> Vocabulary:
    return Vocabulary(
        concepts=tuple(message.concepts),
        styles=tuple(message.styles),
        backgrounds=tuple(message.backgrounds),
    )
