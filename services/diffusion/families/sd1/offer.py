"""What clients may ask of a model: limits, defaults, samplers, and how many rows to batch.

Follows from the sizes in the layout; `limner.json` has the last word on limits and defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.diffusion.families.card import CARD_FILE, ModelCard, overridden
from services.diffusion.families.errors import BrokenModelError
from services.diffusion.families.sd1.layout import Layout
from services.diffusion.model import ImageDefaults, ImageLimits
from services.diffusion.samplers.registry import MAX_STEP_COUNT, SAMPLERS, plan
from services.diffusion.schedule import NoiseSchedule

_CHARACTERS_PER_TOKEN = 16
# Latent elements times weights of the denoiser that one call may cover: about a tenth of a second
# of work on two CPU cores, and enough to fill a large GPU.
_WORK_PER_CALL = {"cpu": 4e10, "cuda": 1.2e14}
_MAX_BATCH_ROWS = {"cpu": 16, "cuda": 32}
_BYTES_PER_WEIGHT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What clients may ask of a model."""

    limits: ImageLimits
    defaults: ImageDefaults
    samplers: tuple[str, ...]
    max_batch_rows: int


def make_offer(layout: Layout, card: ModelCard, *, device: str) -> Offer:
    """Work out the offer of a model on `device`.

    Raises `BrokenModelError` where overrides are unknown, ill-typed or contradict each other.
    """
    path = str(layout.folder / CARD_FILE)
    limits = overridden(derived_limits(layout), card.limits, f"{path}: limits")
    defaults = overridden(derived_defaults(layout), card.defaults, f"{path}: defaults")
    samplers = _usable_samplers(layout.schedule)
    _check_defaults(limits, defaults, samplers, path)
    return Offer(
        limits=limits,
        defaults=defaults,
        samplers=samplers,
        max_batch_rows=_batch_rows(layout, defaults, device),
    )


def derived_limits(layout: Layout) -> ImageLimits:
    """Limits that follow from the sizes: half to twice the side it was trained on."""
    half = layout.native_side // 2 // layout.side_multiple * layout.side_multiple
    return ImageLimits(
        min_side=max(layout.side_multiple, half),
        max_side=2 * layout.native_side,
        side_multiple=layout.side_multiple,
        max_pixel_count=9 * layout.native_side**2 // 4,
        min_step_count=1,
        max_step_count=min(MAX_STEP_COUNT, layout.schedule.train_step_count - 1),
        min_guidance_scale=0.0,
        max_guidance_scale=30.0,
        max_sample_count=16,
        max_prompt_length=_CHARACTERS_PER_TOKEN * layout.token_window,
    )


def derived_defaults(layout: Layout) -> ImageDefaults:
    """Defaults that suit Stable Diffusion 1.x in general."""
    return ImageDefaults(
        width=layout.native_side,
        height=layout.native_side,
        step_count=25,
        guidance_scale=7.5,
        sampler="dpmpp_2m",
    )


def _usable_samplers(schedule: NoiseSchedule) -> tuple[str, ...]:
    """Samplers that can start on this schedule; not all can on one that ends in pure noise."""
    return tuple(name for name in SAMPLERS if _starts(name, schedule))


def _starts(sampler: str, schedule: NoiseSchedule) -> bool:
    try:
        plan(sampler, schedule, min(4, schedule.train_step_count - 1))
    except ValueError:
        return False
    return True


def _check_defaults(
    limits: ImageLimits, defaults: ImageDefaults, samplers: tuple[str, ...], path: str
) -> None:
    faults = []
    for key, side in (("width", defaults.width), ("height", defaults.height)):
        if not limits.min_side <= side <= limits.max_side or side % limits.side_multiple:
            faults.append(f"{key} {side}")
    if defaults.width * defaults.height > limits.max_pixel_count:
        faults.append(f"{defaults.width} × {defaults.height} pixels")
    if not limits.min_step_count <= defaults.step_count <= limits.max_step_count:
        faults.append(f"step_count {defaults.step_count}")
    if not limits.min_guidance_scale <= defaults.guidance_scale <= limits.max_guidance_scale:
        faults.append(f"guidance_scale {defaults.guidance_scale}")
    if defaults.sampler not in samplers:
        faults.append(f"sampler {defaults.sampler} (usable: {', '.join(samplers)})")
    if faults:
        raise BrokenModelError(f"{path}: defaults outside the limits: {', '.join(faults)}")


def _batch_rows(layout: Layout, defaults: ImageDefaults, device: str) -> int:
    """Rows up to the work that fills the device; at least 2, for guidance."""
    latent_count = defaults.width * defaults.height // layout.vae_scale**2
    row_work = layout.unet_bytes / _BYTES_PER_WEIGHT * latent_count
    rows = int(_WORK_PER_CALL[device] / row_work)
    return max(2, min(_MAX_BATCH_ROWS[device], rows))
