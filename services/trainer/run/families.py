"""The architectures that can be trained, as a table: which part is of which class.

Used by `base_model` to recognise a folder and by whoever goes over a model's parts. What a family
computes differently stands in `text`, `noising` and `denoising` (ADR 18, ADR 26).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

FamilyName = Literal["sd1", "sdxl", "sd3"]
DenoiserPart = Literal["unet", "transformer"]

_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
_PROJECTING_ENCODER = ("CLIPTextModelWithProjection",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """An architecture, and the stock pipeline around its parts."""

    title: str
    pipeline_class: str
    sampler_class: str
    """Stock scheduler that samples are drawn with."""
    training_scheduler_class: str
    """Stock scheduler that has the noise levels of training."""
    classes: Mapping[str, tuple[str, ...]]
    text_parts: tuple[str, ...]
    """Text encoders that can be trained, in the order in which their widths are joined."""
    denoiser: DenoiserPart
    latent_channels: int
    optional_text_part: str | None = None
    """A further text encoder, never trained, that a folder may do without."""

    def tokenizer_of(self, text_part: str) -> str:
        """Folder of a text encoder's tokenizer."""
        return text_part.replace("text_encoder", "tokenizer")


_SD1 = Family(
    title="SD 1.x",
    pipeline_class="StableDiffusionPipeline",
    sampler_class="DDIMScheduler",
    training_scheduler_class="DDPMScheduler",
    classes={
        "tokenizer": _TOKENIZER,
        "text_encoder": ("CLIPTextModel",),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
    },
    text_parts=("text_encoder",),
    denoiser="unet",
    latent_channels=4,
)
_SDXL = Family(
    title="SDXL",
    pipeline_class="StableDiffusionXLPipeline",
    sampler_class="DDIMScheduler",
    training_scheduler_class="DDPMScheduler",
    classes={
        **_SD1.classes,
        "tokenizer_2": _TOKENIZER,
        "text_encoder_2": _PROJECTING_ENCODER,
    },
    text_parts=("text_encoder", "text_encoder_2"),
    denoiser="unet",
    latent_channels=4,
)
_SD3 = Family(
    title="SD3",
    pipeline_class="StableDiffusion3Pipeline",
    sampler_class="FlowMatchEulerDiscreteScheduler",
    training_scheduler_class="FlowMatchEulerDiscreteScheduler",
    classes={
        "tokenizer": _TOKENIZER,
        "tokenizer_2": _TOKENIZER,
        "tokenizer_3": ("T5TokenizerFast", "T5Tokenizer"),
        "text_encoder": _PROJECTING_ENCODER,
        "text_encoder_2": _PROJECTING_ENCODER,
        "text_encoder_3": ("T5EncoderModel",),
        "transformer": ("SD3Transformer2DModel",),
        "vae": ("AutoencoderKL",),
    },
    text_parts=("text_encoder", "text_encoder_2"),
    optional_text_part="text_encoder_3",
    denoiser="transformer",
    latent_channels=16,
)

FAMILIES: Mapping[FamilyName, Family] = MappingProxyType({"sd1": _SD1, "sdxl": _SDXL, "sd3": _SD3})
