"""From what a client asked for to a spec that the model can draw: defaults, limits, all violations.

Called by `generation` before any device work. The reasons are those of `generation.proto`; the
limits are the model's, those `ListModels` reports, and the sampler's.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from services.diffusion.batching import ImageSpec
from services.diffusion.model import ImageLimits, LoadedModel
from services.diffusion.noise import SEED_COUNT
from services.diffusion.samplers import SAMPLERS
from services.imaging.encoding import MIME_TYPES, ImageFormatName
from services.runtime.errors import FieldViolation, InvalidRequestError

T = TypeVar("T")

DEFAULT_FORMAT: ImageFormatName = "png"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """A request as it came; None where the client left a value out."""

    model: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    step_count: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    sampler: str | None = None
    """A name of `SAMPLERS`, or whatever else came."""
    sample_count: int | None = None
    output_format: str | None = None
    """A name of `MIME_TYPES`, or whatever else came."""
    preview_interval: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedRequest:
    """What will be drawn, and as what it will be delivered."""

    spec: ImageSpec
    output_format: ImageFormatName


def resolve(request: ImageRequest, model: LoadedModel) -> ResolvedRequest:
    """Fill defaults in and check every value; a seed that is absent is drawn at random.

    Raises InvalidRequestError with all violations, each with the path of its field.
    """
    spec = _with_defaults(request, model)
    formats = {str(name): name for name in MIME_TYPES}
    output_format = formats.get(request.output_format or DEFAULT_FORMAT)
    violations = list(_violations(spec, model))
    if output_format is None:
        violations.append(
            _violation("output_format", "UNSUPPORTED", f"must be one of {', '.join(formats)}")
        )
    if violations or output_format is None:
        raise InvalidRequestError(violations)
    return ResolvedRequest(spec=spec, output_format=output_format)


def _with_defaults(request: ImageRequest, model: LoadedModel) -> ImageSpec:
    defaults = model.defaults
    return ImageSpec(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=_or(request.width, defaults.width),
        height=_or(request.height, defaults.height),
        step_count=_or(request.step_count, defaults.step_count),
        guidance_scale=_or(request.guidance_scale, defaults.guidance_scale),
        seed=secrets.randbelow(SEED_COUNT) if request.seed is None else request.seed,
        sampler=_or(request.sampler, defaults.sampler),
        sample_count=_or(request.sample_count, 1),
        preview_interval=request.preview_interval,
    )


def _violations(spec: ImageSpec, model: LoadedModel) -> Iterator[FieldViolation]:
    limits = model.limits
    yield from _prompt_violations(spec, limits)
    yield from _size_violations(spec, limits)
    yield from _guidance_violations(spec, limits)
    if spec.sampler in model.samplers:
        yield from _step_violations(spec, model)
    else:
        supported = f"must be one of {', '.join(model.samplers)}; got {spec.sampler}"
        yield _violation("sampler", "UNSUPPORTED", supported)
        lowest, highest = limits.min_step_count, limits.max_step_count
        yield from _range("step_count", spec.step_count, lowest, highest)
    yield from _range("seed", spec.seed, 0, SEED_COUNT - 1)
    yield from _range("sample_count", spec.sample_count, 1, limits.max_sample_count)
    if spec.preview_interval < 0:
        yield _violation(
            "preview_interval", "OUT_OF_RANGE", f"must not be negative; got {spec.preview_interval}"
        )


def _prompt_violations(spec: ImageSpec, limits: ImageLimits) -> Iterator[FieldViolation]:
    if not spec.prompt.strip():
        yield _violation("prompt", "REQUIRED", "must say what the picture shows")
    for field, text in (("prompt", spec.prompt), ("negative_prompt", spec.negative_prompt)):
        if len(text) > limits.max_prompt_length:
            allowed = f"must have at most {limits.max_prompt_length} characters; got {len(text)}"
            yield _violation(field, "TOO_LONG", allowed)


def _size_violations(spec: ImageSpec, limits: ImageLimits) -> Iterator[FieldViolation]:
    sides = (("width", spec.width), ("height", spec.height))
    in_range = True
    for field, side in sides:
        out_of_range = list(_range(field, side, limits.min_side, limits.max_side))
        in_range = in_range and not out_of_range
        yield from out_of_range
        if side % limits.side_multiple:
            allowed = f"must be a multiple of {limits.side_multiple}; got {side}"
            yield _violation(field, "NOT_A_MULTIPLE", allowed)
    pixel_count = spec.width * spec.height
    if in_range and pixel_count > limits.max_pixel_count:
        allowed = f"width × height must be at most {limits.max_pixel_count}; got {pixel_count}"
        for field, _ in sides:
            yield _violation(field, "OUT_OF_RANGE", allowed)


def _guidance_violations(spec: ImageSpec, limits: ImageLimits) -> Iterator[FieldViolation]:
    scale = spec.guidance_scale
    if not math.isfinite(scale):
        yield _violation("guidance_scale", "NOT_FINITE", f"must be a finite number; got {scale}")
    else:
        lowest, highest = limits.min_guidance_scale, limits.max_guidance_scale
        yield from _range("guidance_scale", scale, lowest, highest)


def _step_violations(spec: ImageSpec, model: LoadedModel) -> Iterator[FieldViolation]:
    sampler = SAMPLERS[spec.sampler]
    lowest = max(model.limits.min_step_count, sampler.min_step_count)
    highest = min(
        model.limits.max_step_count,
        sampler.max_step_count,
        # More steps than the schedule can tell apart are none.
        model.schedule.train_step_count - 1,
    )
    for violation in _range("step_count", spec.step_count, lowest, highest):
        described = f"{violation.description} with sampler {spec.sampler}"
        yield _violation(violation.field, violation.reason, described)


def _range(field: str, value: float, lowest: float, highest: float) -> Iterator[FieldViolation]:
    if not lowest <= value <= highest:
        allowed = f"must be between {lowest} and {highest}; got {value}"
        yield _violation(field, "OUT_OF_RANGE", allowed)


def _violation(field: str, reason: str, description: str) -> FieldViolation:
    return FieldViolation(field=field, reason=reason, description=description)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
