"""A tiny random model of the SD3 architecture in diffusers layout."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tests.diffusion.tiny import write_tokenizer
from tests.trainer.run.tiny_clip import enlivened, tiny_clip

_CLIP_WIDTHS = (16, 24)
_JOINT_WIDTH = 48
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_sd3_model(folder: Path, *, third_encoder: bool = True, seed: int = 0) -> Path:
    """Write two CLIP text encoders, T5 unless told otherwise, a transformer and an autoencoder of
    16 channels with a shift."""
    torch.manual_seed(seed)
    tokenizers = [write_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=_JOINT_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=sum(_CLIP_WIDTHS),
        pos_embed_max_size=12,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipeline = StableDiffusion3Pipeline(
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        tokenizer_3=_t5_tokenizer() if third_encoder else None,
        text_encoder=_clip(tokenizers[0], _CLIP_WIDTHS[0]),
        text_encoder_2=_clip(tokenizers[1], _CLIP_WIDTHS[1]),
        text_encoder_3=_t5() if third_encoder else None,
        transformer=enlivened(transformer),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _t5_tokenizer() -> T5TokenizerFast:
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{a}" for a in _LETTERS), *_LETTERS]
    tokenizer = Tokenizer(models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0)


def _clip(tokenizer: CLIPTokenizer, width: int) -> nn.Module:
    return tiny_clip(CLIPTextModelWithProjection, tokenizer, width, projection=width)


def _t5() -> nn.Module:
    config = T5Config(
        vocab_size=64, d_model=_JOINT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    return T5EncoderModel(config)
