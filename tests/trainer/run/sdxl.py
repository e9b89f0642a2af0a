"""A tiny random model of the SDXL architecture in diffusers layout."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.diffusion.tiny import write_tokenizer
from tests.trainer.run.tiny_clip import tiny_clip

_WIDTHS = (16, 24)
_PROJECTION = 24
_TIME_WIDTH = 8


def write_sdxl_model(folder: Path, *, seed: int = 0) -> Path:
    """Write two text encoders, a UNet with sizes and pooled text, and an autoencoder."""
    torch.manual_seed(seed)
    tokenizers = [write_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        use_linear_projection=True,
        cross_attention_dim=sum(_WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_WIDTH,
        projection_class_embeddings_input_dim=_PROJECTION + 6 * _TIME_WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    pipeline = StableDiffusionXLPipeline(
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        text_encoder=_encoder(CLIPTextModel, tokenizers[0], _WIDTHS[0]),
        text_encoder_2=_encoder(CLIPTextModelWithProjection, tokenizers[1], _WIDTHS[1]),
        unet=unet,
        vae=vae,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _encoder(encoder_class: type[nn.Module], tokenizer: CLIPTokenizer, width: int) -> nn.Module:
    return tiny_clip(encoder_class, tokenizer, width, projection=_PROJECTION)
