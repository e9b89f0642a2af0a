"""Tiny random CLIP text encoders, for models that have several."""

from __future__ import annotations

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTokenizer

from tests.diffusion.tiny import TOKEN_WINDOW


def tiny_clip(
    encoder_class: type[nn.Module], tokenizer: CLIPTokenizer, width: int, *, projection: int
) -> nn.Module:
    """An encoder of two layers; `projection` is the width of its pooled text."""
    return enlivened(
        encoder_class(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=TOKEN_WINDOW,
                projection_dim=projection,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    )


def enlivened(module: nn.Module) -> nn.Module:
    """Larger weights than at a start, so that a change of one shows in the result."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.2)
    return module
