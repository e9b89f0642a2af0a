"""The parts of a base model in torch: loaded when they are asked for, let go when they are not.

A run needs text encoders and autoencoder while it fills its caches, and the denoiser when it
trains; what is cached is not kept in memory. What is computed with the parts is in `text`,
`denoising` and below.

Shape legend: B rows, C latent channels, h and w latent sides, H and W picture sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import diffusers
import torch
import transformers
from torch import Tensor, nn

from services.trainer.run.base_model import BaseModel
from services.trainer.run.families import FamilyName
from services.trainer.run.loading import load_denoiser, load_part, load_tokenizer


class Components:
    """The parts of a model, frozen and in evaluation mode as they come.

    Raises `BaseModelError` where a file cannot be read or weights are missing or misshapen.
    """

    def __init__(self, base: BaseModel) -> None:
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        # It warns of every key that another version of itself wrote.
        diffusers.utils.logging.set_verbosity_error()
        self.base = base
        self.tokenizers = [
            load_tokenizer(getattr(transformers, base.parts.classes[part][0]), base.folder / part)
            for part in base.tokenizer_parts
        ]
        scheduler_class: Any = getattr(diffusers, base.parts.training_scheduler_class)
        self.scheduler: Any = scheduler_class.from_pretrained(base.folder / "scheduler")
        """A diffusers scheduler with the model's noise levels."""
        self._modules: dict[str, nn.Module] = {}

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer, in the type that it was first asked for."""
        return self.part(self.base.parts.denoiser)

    @property
    def trainable_parts(self) -> tuple[str, ...]:
        """What a run may train, in a fixed order."""
        return (self.base.parts.denoiser, *self.base.parts.text_parts)

    @property
    def loaded(self) -> dict[str, nn.Module]:
        """Those of the trainable parts that are in memory, in their order."""
        return {p: self._modules[p] for p in self.trainable_parts if p in self._modules}

    def part(self, name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A part, loaded with weights of `dtype` unless it is in memory."""
        if name not in self._modules:
            self._modules[name] = self._load(name, dtype)
        return self._modules[name]

    def drop(self, *names: str) -> None:
        """Let go of parts; they would be loaded anew, as they are in the base model."""
        for name in names:
            self._modules.pop(name, None)

    def drop_all(self) -> None:
        """Let go of every part."""
        self._modules.clear()

    def pipeline(self, device: torch.device, *, with_text: bool) -> Any:
        """A stock pipeline around these very parts, silent; text encoders only `with_text`."""
        family = self.base.parts
        # diffusers' constructors have no types.
        sampler_class: Any = getattr(diffusers, family.sampler_class)
        pipeline_class: Any = getattr(diffusers, family.pipeline_class)
        text_parts = dict.fromkeys(part for part in family.classes if "text_encoder" in part)
        tokenizers = dict.fromkeys(part for part in family.classes if "tokenizer" in part)
        tokenizers |= dict(zip(self.base.tokenizer_parts, self.tokenizers, strict=True))
        if with_text:
            text_parts |= {part: self.part(part) for part in self.base.text_parts}
        pipeline = pipeline_class(
            **tokenizers,
            **text_parts,
            **{part: self.part(part) for part in (family.denoiser, "vae")},
            scheduler=sampler_class.from_config(self.scheduler.config),
            **_PIPELINE_OPTIONS[self.base.family](self.base),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    def _load(self, name: str, dtype: torch.dtype) -> nn.Module:
        base, folder = self.base, self.base.folder / name
        if name == base.parts.denoiser:
            return load_denoiser(getattr(diffusers, base.parts.classes[name][0]), folder, dtype)
        if name == "vae":
            return load_part(getattr(diffusers, base.vae_class), folder, dtype)
        return load_part(getattr(transformers, base.parts.classes[name][0]), folder, dtype)


def encode_moments(vae: nn.Module, pictures_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and deviation (B, C, h, w) of the latents of pictures in [-1, 1], shifted and scaled as
    the denoiser sees them; no deviation for an autoencoder that is deterministic."""
    encoded = vae.encode(pictures_B3HW)  # type: ignore[operator]
    config = cast(Any, vae).config
    scale, shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0.0)
    if hasattr(encoded, "latents"):
        return (encoded.latents - shift) * scale, None
    distribution = encoded.latent_dist
    return (distribution.mean - shift) * scale, distribution.std * scale


def _sd1_options(base: BaseModel) -> dict[str, Any]:
    return {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _sdxl_options(base: BaseModel) -> dict[str, Any]:
    return {
        "force_zeros_for_empty_prompt": base.zeroes_empty_prompts,
        "add_watermarker": False,
    }


def _sd3_options(base: BaseModel) -> dict[str, Any]:
    return {}


_PIPELINE_OPTIONS: Mapping[FamilyName, Callable[[BaseModel], dict[str, Any]]] = {
    "sd1": _sd1_options,
    "sdxl": _sdxl_options,
    "sd3": _sd3_options,
}
