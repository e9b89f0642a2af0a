"""What a folder of the SD 1.x architecture holds, read from its configuration alone.

`read_layout` refuses everything that the family does not serve, before any weights are loaded.
Limits and defaults follow from it in `offer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from services.diffusion.families.errors import BrokenModelError, UnsupportedModelError
from services.diffusion.families.files import (
    content_digest,
    existing_files,
    read_json,
    require_safetensors,
)
from services.diffusion.schedule import NoiseSchedule

LATENT_CHANNEL_COUNT = 4

_COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
}
_WEIGHT_STEMS: Mapping[str, str] = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_CONFIG_SUFFIXES = (".json", ".txt")
# Conditioning that a plain prompt does not provide; the served value is the first.
_UNET_VARIANTS: Mapping[str, tuple[object, ...]] = {
    "addition_embed_type": (None, "text"),
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "num_class_embeds": (None,),
    "time_cond_proj_dim": (None,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Sizes and identity of a model; sides in pixels unless said otherwise."""

    folder: Path
    revision: str
    """Digest of weights and configuration, 16 hexadecimal digits."""
    vae_class: str
    schedule: NoiseSchedule
    vae_scale: int
    """Pixels a side for one latent element."""
    side_multiple: int
    """Pixels a side for one element at the UNet's coarsest level."""
    native_side: int
    """Side of the pictures it was trained on."""
    token_window: int
    """Tokens that the text encoder reads, the markers included."""
    text_width: int
    unet_bytes: int
    """Size of the denoiser's weights as stored."""


def read_layout(folder: Path) -> Layout:
    """Read and check the configuration in `folder`, and digest its files.

    Raises `UnsupportedModelError`, `UnsafeWeightsError` or `BrokenModelError`.
    """
    _check_index(folder)
    weights = {
        part: require_safetensors(folder / part, stem) for part, stem in _WEIGHT_STEMS.items()
    }
    unet = read_json(folder / "unet" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    text = read_json(folder / "text_encoder" / "config.json")
    _check_unet(folder, unet, vae, text)
    parts = [folder / part for part in (*_COMPONENTS, "scheduler")]
    configs = existing_files(parts, _CONFIG_SUFFIXES)
    vae_scale = 2 ** (len(_levels(folder, "vae", vae)) - 1)
    return Layout(
        folder=folder,
        revision=content_digest(folder, [folder / "model_index.json", *weights.values(), *configs]),
        vae_class=str(vae["_class_name"]),
        schedule=_read_schedule(folder),
        vae_scale=vae_scale,
        side_multiple=vae_scale * 2 ** (len(_levels(folder, "unet", unet)) - 1),
        native_side=vae_scale * _size(folder, "unet", unet, "sample_size"),
        token_window=_token_window(folder, text),
        text_width=_size(folder, "text_encoder", text, "hidden_size"),
        unet_bytes=weights["unet"].stat().st_size,
    )


def _check_index(folder: Path) -> None:
    index = read_json(folder / "model_index.json")
    pipeline = index.get("_class_name", "an unnamed pipeline")
    for component, classes in _COMPONENTS.items():
        entry = index.get(component)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found not in classes:
            raise UnsupportedModelError(
                f"{folder} is not of the SD 1.x architecture: model_index.json describes "
                f"{pipeline} with {component} {found or 'absent'}, not {' or '.join(classes)}"
            )
    for foreign in ("text_encoder_2", "text_encoder_3", "transformer", "controlnet"):
        if index.get(foreign) not in (None, [None, None]):
            raise UnsupportedModelError(
                f"{folder} is not of the SD 1.x architecture: model_index.json describes "
                f"{pipeline} with a {foreign}"
            )


def _check_unet(
    folder: Path, unet: Mapping[str, object], vae: Mapping[str, object], text: Mapping[str, object]
) -> None:
    for key in ("in_channels", "out_channels"):
        if unet.get(key) != LATENT_CHANNEL_COUNT:
            hint = ", an inpainting model" if unet.get(key) == 9 else ""
            raise UnsupportedModelError(
                f"{folder}: unet {key} is {unet.get(key)}{hint}; only "
                f"{LATENT_CHANNEL_COUNT} is served"
            )
    for key, served in _UNET_VARIANTS.items():
        if unet.get(key) not in served:
            raise UnsupportedModelError(f"{folder}: unet {key} {unet[key]!r} is not served")
    if vae.get("latent_channels", LATENT_CHANNEL_COUNT) != LATENT_CHANNEL_COUNT:
        raise BrokenModelError(
            f"{folder}: vae latent_channels {vae['latent_channels']} does not fit the unet's "
            f"{LATENT_CHANNEL_COUNT}"
        )
    if unet.get("cross_attention_dim") != text.get("hidden_size"):
        raise BrokenModelError(
            f"{folder}: unet cross_attention_dim {unet.get('cross_attention_dim')} does not fit "
            f"text_encoder hidden_size {text.get('hidden_size')}"
        )


def _read_schedule(folder: Path) -> NoiseSchedule:
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        return NoiseSchedule.from_config(read_json(path))
    except ValueError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error


def _token_window(folder: Path, text: Mapping[str, object]) -> int:
    tokenizer = read_json(folder / "tokenizer" / "tokenizer_config.json")
    encoder_window = _size(folder, "text_encoder", text, "max_position_embeddings")
    return min(encoder_window, _size(folder, "tokenizer", tokenizer, "model_max_length"))


def _levels(folder: Path, part: str, config: Mapping[str, object]) -> list[object]:
    """Resolutions of a component, finest first, as the list of its channel counts."""
    for key in ("block_out_channels", "decoder_block_out_channels"):
        value = config.get(key)
        if isinstance(value, list) and value:
            return cast(list[object], value)
    raise BrokenModelError(f"{folder}: {part} has no block_out_channels")


def _size(folder: Path, part: str, config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise BrokenModelError(f"{folder}: {part} {key} must be a positive integer, not {value!r}")
