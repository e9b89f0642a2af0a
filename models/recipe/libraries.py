"""diffusers' classes, as the type checker can live with them.

Imported by every module that builds or runs a part of the model. diffusers loads lazily and shows
type checkers a placeholder without attributes; here they see classes that may do anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class AttnProcessor(Any):  # type: ignore[misc]
        """Attention spelt out."""

    class AutoencoderTiny(Any):  # type: ignore[misc]
        """Encoder and decoder between pictures and latents."""

    class ControlNetModel(Any):  # type: ignore[misc]
        """A second encoder that steers the denoiser."""

    class DDIMScheduler(Any):  # type: ignore[misc]
        """The noise schedule."""

    class StableDiffusionPipeline(Any):  # type: ignore[misc]
        """All parts of the model together."""

    class StableDiffusionControlNetPipeline(Any):  # type: ignore[misc]
        """The same with a ControlNet."""

    class StableDiffusionImg2ImgPipeline(Any):  # type: ignore[misc]
        """From a picture to a picture."""

    class StableDiffusionInpaintPipeline(Any):  # type: ignore[misc]
        """From a picture with a hole to a picture."""

    class UNet2DConditionModel(Any):  # type: ignore[misc]
        """The denoiser."""
else:
    from diffusers import (
        AutoencoderTiny,
        ControlNetModel,
        DDIMScheduler,
        StableDiffusionControlNetPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from diffusers.models.attention_processor import AttnProcessor

__all__ = [
    "AttnProcessor",
    "AutoencoderTiny",
    "ControlNetModel",
    "DDIMScheduler",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "UNet2DConditionModel",
]
