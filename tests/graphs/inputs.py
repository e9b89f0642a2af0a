"""Random inputs for graphs of the tiny models."""

from __future__ import annotations

import torch

from services.diffusion.families.sd1.layout import LATENT_CHANNEL_COUNT, Layout


def denoiser_inputs(
    layout: Layout, row_count: int, height: int = 64, width: int = 64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random latents, different timesteps and contexts; sides in pixels."""
    generator = torch.Generator().manual_seed(row_count)
    scale = layout.vae_scale
    latents = torch.randn(
        row_count, LATENT_CHANNEL_COUNT, height // scale, width // scale, generator=generator
    )
    context = torch.randn(row_count, layout.token_window, layout.text_width, generator=generator)
    return latents, torch.linspace(999.0, 0.5, row_count), context
