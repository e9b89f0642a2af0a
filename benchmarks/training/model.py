"""A model with the architecture of Stable Diffusion 1.5 and random weights.

Sizes are those of the published configuration: 860 M parameters in the UNet, 123 M in the text
encoder, 84 M in the autoencoder. The tokenizer spells words out; it has the published window of 77.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

_SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_WINDOW = 77


def write_model(folder: Path, *, tiny: bool = False) -> Path:
    """Write it in diffusers layout, 4 GiB; what is there is kept. `tiny`: for a smoke run."""
    if (folder / "model_index.json").is_file():
        return folder
    torch.manual_seed(0)
    # diffusers' constructors have no types.
    library: Any = diffusers
    tokenizer = _write_tokenizer(folder / "tokenizer")
    pipeline = library.StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(tokenizer, tiny=tiny),
        unet=_unet(library, tiny=tiny),
        vae=_autoencoder(library, tiny=tiny),
        scheduler=library.DDIMScheduler(**_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _unet(library: Any, *, tiny: bool) -> Any:
    return library.UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(32, 64, 64, 64) if tiny else (320, 640, 1280, 1280),
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        cross_attention_dim=768,
        attention_head_dim=8,
    )


def _autoencoder(library: Any, *, tiny: bool) -> Any:
    return library.AutoencoderKL(
        block_out_channels=(32, 32, 64, 64) if tiny else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.18215,
    )


def _text_encoder(tokenizer: Any, *, tiny: bool) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=2 if tiny else 12,
        num_attention_heads=12,
        max_position_embeddings=_WINDOW,
        projection_dim=768,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.CLIPTextModel(config)


def _write_tokenizer(folder: Path) -> Any:
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        model_max_length=_WINDOW,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
