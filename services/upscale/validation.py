"""From what a client asked for to a picture that can be made: defaults, limits, all violations.

Called by `upscaling` in two steps, both before any device work: `resolve` looks at values and at
the file's header, and the file itself is decoded after a place for it was found. The reasons are
those of `upscale.proto`; the limits are those that `ListModels` reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from services.imaging.band_encoding import MAX_SIDES
from services.imaging.encoding import MIME_TYPES, ImageFormatName
from services.imaging.header import ImageHeader, UnusableImageError, read_header
from services.runtime.errors import FieldViolation, InvalidRequestError
from services.upscale.model import LoadedUpscaler

DEFAULT_FORMAT: ImageFormatName = "png"
MIN_SCALE = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscaleRequest:
    """A request as it came; None where the client left a value out."""

    model: str = ""
    image: bytes = b""
    scale: float | None = None
    output_format: str | None = None
    """A name of `MIME_TYPES`, or whatever else came."""
    denoise_strength: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedUpscale:
    """What will be made. Sides in pixels, those of the source when upright."""

    source_width: int
    source_height: int
    width: int
    height: int
    scale: float
    denoise_strength: float | None
    """In tenths; None for a model that has none."""
    output_format: ImageFormatName

    @property
    def pixel_count(self) -> int:
        """Pixels of the output."""
        return self.width * self.height


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What is known before the file is decoded: a resolved request, or what is wrong with it."""

    violations: tuple[FieldViolation, ...]
    header: ImageHeader | None
    """None where the file's header cannot be used."""
    resolved: ResolvedUpscale | None
    """Set where nothing is wrong."""

    def require(self) -> ResolvedUpscale:
        """Return what is resolved; raises InvalidRequestError with all violations."""
        if self.resolved is None:
            raise InvalidRequestError(self.violations)
        return self.resolved


def scale_range(model: LoadedUpscaler) -> tuple[float, float]:
    """Smallest and largest scale that a request may ask of `model`."""
    return min(MIN_SCALE, float(model.scale)), float(model.scale)


def max_source_pixels(model: LoadedUpscaler, max_output_pixels: int) -> int:
    """Largest source that any scale of `model` can turn into an allowed output."""
    return int(max_output_pixels / scale_range(model)[0] ** 2)


def check(request: UpscaleRequest, model: LoadedUpscaler, *, max_output_pixels: int) -> Checked:
    """Fill defaults in and check every value, and the header of the file."""
    header, violations = _header(request.image)
    scale = float(model.scale) if request.scale is None else request.scale
    scale_violations = list(_scale_violations(scale, model))
    violations += scale_violations
    formats = {str(name): name for name in MIME_TYPES}
    output_format = formats.get(request.output_format or DEFAULT_FORMAT)
    if output_format is None:
        allowed = f"must be one of {', '.join(formats)}"
        violations.append(_violation("output_format", "UNSUPPORTED", allowed))
    violations += _denoise_violations(request.denoise_strength, model)
    if header is not None:
        limit = max_source_pixels(model, max_output_pixels)
        if header.pixel_count > limit:
            violations.append(_source_too_large(header, limit, max_output_pixels))
        elif not scale_violations:
            violations += _size_violations(header, scale, output_format, max_output_pixels)
    if violations or header is None or output_format is None:
        return Checked(violations=tuple(violations), header=header, resolved=None)
    width, height = _output_sides(header, scale)
    resolved = ResolvedUpscale(
        source_width=header.width,
        source_height=header.height,
        width=width,
        height=height,
        scale=scale,
        denoise_strength=_denoise_strength(request.denoise_strength, model),
        output_format=output_format,
    )
    return Checked(violations=(), header=header, resolved=resolved)


def image_violation(error: UnusableImageError) -> FieldViolation:
    """What a client is told about a file that cannot be used."""
    return _violation("image", error.problem, str(error))


def _header(data: bytes) -> tuple[ImageHeader | None, list[FieldViolation]]:
    try:
        return read_header(data), []
    except UnusableImageError as error:
        return None, [image_violation(error)]


def _scale_violations(scale: float, model: LoadedUpscaler) -> Iterator[FieldViolation]:
    lowest, highest = scale_range(model)
    if not math.isfinite(scale):
        yield _violation("scale", "NOT_FINITE", f"must be a finite number; got {scale}")
    elif not lowest <= scale <= highest:
        allowed = f"must be between {lowest:g} and {highest:g} with model {model.name}"
        yield _violation("scale", "OUT_OF_RANGE", f"{allowed}; got {scale:g}")


def _size_violations(
    header: ImageHeader, scale: float, output_format: str | None, max_output_pixels: int
) -> Iterator[FieldViolation]:
    width, height = _output_sides(header, scale)
    if width * height > max_output_pixels:
        largest = math.floor(math.sqrt(max_output_pixels / header.pixel_count) * 100) / 100
        text = (
            f"must be at most {largest:g} for a source of {header.width} × {header.height}: the "
            f"output may have {max_output_pixels} pixels; {scale:g} gives {width * height}"
        )
        yield _violation("scale", "OUT_OF_RANGE", text)
    longest = next((MAX_SIDES[name] for name in MAX_SIDES if name == output_format), None)
    if longest is not None and max(width, height) > longest:
        text = f"{output_format} allows sides of {longest} pixels; got {width} × {height}"
        yield _violation("output_format", "TOO_LARGE", text)


def _source_too_large(header: ImageHeader, limit: int, max_output_pixels: int) -> FieldViolation:
    text = (
        f"must have at most {limit} pixels, as the output may have {max_output_pixels}; "
        f"got {header.width} × {header.height} = {header.pixel_count}"
    )
    return _violation("image", "TOO_LARGE", text)


def _denoise_violations(strength: float | None, model: LoadedUpscaler) -> list[FieldViolation]:
    if strength is None:
        return []
    field = "denoise_strength"
    if model.default_denoise_strength is None:
        return [_violation(field, "UNSUPPORTED", f"model {model.name} has no choice of it")]
    if not math.isfinite(strength):
        return [_violation(field, "NOT_FINITE", f"must be a finite number; got {strength}")]
    if not 0.0 <= strength <= 1.0:
        return [_violation(field, "OUT_OF_RANGE", f"must be between 0 and 1; got {strength:g}")]
    return []


def _denoise_strength(strength: float | None, model: LoadedUpscaler) -> float | None:
    wanted = model.default_denoise_strength if strength is None else strength
    return None if wanted is None else round(wanted, 1)


def _output_sides(header: ImageHeader, scale: float) -> tuple[int, int]:
    return max(1, round(header.width * scale)), max(1, round(header.height * scale))


def _violation(field: str, reason: str, description: str) -> FieldViolation:
    return FieldViolation(field=field, reason=reason, description=description)
