"""The parts of a Stable Diffusion 1.x model in torch, and each as a pure function.

`load_components` reads weights with the libraries that define the formats. The modules below wrap
the parts so that a graph takes and returns plain tensors; they hold the conventions of the stock
pipeline (scaling of latents, range of pictures, rounding) and nothing else.

Shape legend: B rows, C latent channels, h and w latent sides, H and W picture sides, L tokens,
D text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from services.diffusion.families.errors import BrokenModelError
from services.diffusion.families.sd1.layout import Layout

# Buffers that older checkpoints carry and newer ones compute.
_COMPUTED_KEYS = ("position_ids",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """The parts of a model, in float32 on the CPU."""

    tokenizer: Any
    text_encoder: nn.Module
    unet: nn.Module
    vae: nn.Module


def load_components(layout: Layout) -> Components:
    """Read every part from safetensors.

    Raises `BrokenModelError` for unreadable files and for weights that are missing or misshapen:
    the libraries would fill those with random numbers.
    """
    folder = layout.folder
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # It warns of every key that another version of itself wrote.
    diffusers.utils.logging.set_verbosity_error()
    return Components(
        tokenizer=_load_tokenizer(folder / "tokenizer"),
        text_encoder=_load(transformers.CLIPTextModel, folder / "text_encoder"),
        unet=_load(diffusers.UNet2DConditionModel, folder / "unet"),
        vae=_load(getattr(diffusers, layout.vae_class), folder / "vae"),
    )


class Denoiser(nn.Module):
    """The UNet: latents (B, C, h, w), timesteps (B,), context (B, L, D) to (B, C, h, w)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents_BChw: Tensor, timesteps_B: Tensor, context_BLD: Tensor) -> Tensor:
        """Return the raw prediction."""
        return cast(Tensor, self.unet(latents_BChw, timesteps_B, context_BLD, return_dict=False)[0])


class Decoder(nn.Module):
    """The autoencoder's second half: latents (B, C, h, w) to uint8 pictures (B, H, W, 3)."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = _scaling_factor(vae)

    def forward(self, latents_BChw: Tensor) -> Tensor:
        """Return finished pixels."""
        pictures = self.vae.decode(latents_BChw / self.scaling_factor, return_dict=False)[0]  # type: ignore[operator]
        # Range and rounding are those of diffusers' VaeImageProcessor.
        pixels = ((pictures * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round()
        # The cast comes last: TensorRT knows 8 bits as an output alone.
        return cast(Tensor, pixels.permute(0, 2, 3, 1).to(torch.uint8))


class TextEncoder(nn.Module):
    """The text encoder: token ids (B, L) to embeddings (B, L, D)."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Return the last hidden state, normalised, without a mask as in the stock pipeline."""
        return cast(Tensor, self.text_encoder(ids_BL).last_hidden_state)


def encode_pictures(vae: nn.Module, pictures_B3HW: Tensor) -> Tensor:
    """Latents (B, C, h, w) of pictures in [-1, 1], as the denoiser sees them; nothing is drawn."""
    encoded = vae.encode(pictures_B3HW)  # type: ignore[operator]
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return cast(Tensor, latents * _scaling_factor(vae))


def _scaling_factor(vae: nn.Module) -> float:
    return float(cast(Any, vae).config.scaling_factor)


def _load_tokenizer(folder: Path) -> Any:
    try:
        return transformers.CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise BrokenModelError(f"{folder} cannot be loaded: {_first_line(error)}") from error


def _load(component_class: Any, folder: Path) -> nn.Module:
    try:
        module, report = component_class.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BrokenModelError(f"{folder} cannot be loaded: {_first_line(error)}") from error
    _check_complete(folder, report)
    return cast(nn.Module, module.eval().requires_grad_(False))


def _check_complete(folder: Path, report: Mapping[str, Any]) -> None:
    for problem in ("missing_keys", "mismatched_keys"):
        keys = [key for key in map(str, report[problem]) if not key.endswith(_COMPUTED_KEYS)]
        if keys:
            raise BrokenModelError(
                f"{folder}: weights do not fit config.json: {problem.replace('_', ' ')} "
                f"{', '.join(sorted(keys)[:3])} ({len(keys)} in all)"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
