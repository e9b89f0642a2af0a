"""Tiny random models of the SD 1.x architecture, written in diffusers layout in a second.

For fixtures of any test that needs a real model and no real picture. `write_plain_model` has a
plain UNet, an AutoencoderKL and noise prediction; `write_emoji_like_model` has the structure of the
embedded model: AutoencoderTiny, velocity prediction, pooled text in the time embedding.
Weights depend on `seed` alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKEN_WINDOW = 16
TEXT_WIDTH = 16
NATIVE_SIDE = 64
VAE_SCALE = 4
SIDE_MULTIPLE = 8

EMOJI_CARD = {
    "display_name": "Tiny Emoji",
    "description": "Random weights in the structure of the embedded model.",
    "license": "CC0-1.0",
    "vocabulary": {
        "concepts": ["red apple", "dog face", "slice of pizza", "rocket"],
        "styles": ["3d", "flat"],
        "backgrounds": ["blue", "light blue", "green"],
    },
    "words": ["puppy", "cute"],
    "defaults": {"step_count": 8, "guidance_scale": 3.0, "sampler": "ddim"},
}

_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def write_plain_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a model with AutoencoderKL, noise prediction and a plain UNet; returns `folder`."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    return _write(folder, unet=_unet(), vae=vae, scheduler=DDIMScheduler(**_SCHEDULE))


def write_emoji_like_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a model in the structure of the embedded one, with `limner.json`; returns `folder`."""
    torch.manual_seed(seed)
    unet = _unet(
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
        scaling_factor=0.9,
    )
    schedule = _SCHEDULE | {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    _write(folder, unet=unet, vae=vae, scheduler=DDIMScheduler(**schedule))
    (folder / "limner.json").write_text(json.dumps(EMOJI_CARD))
    return folder


def shared_cache(session_temp: Path) -> Path:
    """Cache for exported graphs under pytest's base folder: one export serves a whole run.

    A process that shares the tests with others has a base folder of its own in that of the run.
    """
    of_run = session_temp.parent if "PYTEST_XDIST_WORKER" in os.environ else session_temp
    return of_run / "exported-graphs"


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a byte-level tokenizer that spells every word out; returns it."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        model_max_length=TOKEN_WINDOW,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _unet(**variant: Any) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=NATIVE_SIDE // VAE_SCALE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **variant,
    )
    return unet


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKEN_WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    with torch.no_grad():
        # The usual initialisation is so narrow that all prompts would look alike.
        for parameter in encoder.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.2)
    return encoder


def _write(
    folder: Path, *, unet: UNet2DConditionModel, vae: nn.Module, scheduler: DDIMScheduler
) -> Path:
    tokenizer = write_tokenizer(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(tokenizer),
        unet=unet,
        vae=vae,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
