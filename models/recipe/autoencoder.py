"""Stage 1: the autoencoder, eight times smaller on each side, four channels.

Called by the command line. Trains diffusers' AutoencoderTiny from scratch on random crops of the
views, on any background colour, in two phases: the second sees white more often, as the model's
users will, and less noise. Latents are pushed towards zero mean and unit variance and get a little
noise, so that the decoder forgives what the denoiser leaves. Legend: B batch, C channels, H and W
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.recipe.dataset import Dataset, composite
from models.recipe.libraries import AutoencoderTiny
from models.recipe.loop import LossFunction

CROP = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """How one part of the training differs from the other. `batch` is for all CPU processes."""

    minutes: float
    batch: int
    learning_rate: float
    ema_decay: float
    white_share: float
    latent_noise: float
    seed: int


PHASES = (
    Phase(
        minutes=14.0,
        batch=16,
        learning_rate=1.2e-3,
        ema_decay=0.995,
        white_share=0.4,
        latent_noise=0.08,
        seed=0,
    ),
    Phase(
        minutes=15.5,
        batch=8,
        learning_rate=1e-3,
        ema_decay=0.997,
        white_share=0.7,
        latent_noise=0.05,
        seed=7,
    ),
)


def build_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder: light encoder, deeper decoder, 1.3 M parameters."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(64, 64, 64, 64),
        num_encoder_blocks=(1, 2, 2, 2),
        num_decoder_blocks=(3, 3, 2, 1),
        latent_channels=4,
        scaling_factor=1.0,
    )


def picture_loss(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Smooth L1, plus L1 of gradients for crisp edges, plus L1 of coarser scales for colour."""
    loss = F.smooth_l1_loss(output_BCHW, target_BCHW, beta=0.05)
    for axis in (2, 3):
        loss = loss + 0.5 * F.l1_loss(output_BCHW.diff(dim=axis), target_BCHW.diff(dim=axis))
    for factor in (4, 16):
        coarse = F.avg_pool2d(output_BCHW, factor), F.avg_pool2d(target_BCHW, factor)
        loss = loss + 0.25 * F.l1_loss(*coarse)
    return loss


def moment_penalty(latents_BCHW: Tensor) -> Tensor:
    """Zero when every channel has zero mean and unit variance over the batch."""
    mean = latents_BCHW.mean(dim=(0, 2, 3))
    variance = latents_BCHW.var(dim=(0, 2, 3))
    return mean.square().mean() + (variance - 1.0).square().mean()


def draw_pictures(
    dataset: Dataset, count: int, size: int, white_share: float, generator: torch.Generator
) -> Tensor:
    """Random views on white or a random colour, cropped: float32 [count, 3, size, size]."""

    def integers(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    drawing_count, view_count, _, height, width = dataset.views.shape
    tops, lefts = integers(height - size + 1), integers(width - size + 1)
    crops = [
        torch.from_numpy(dataset.views[d, v, :, top : top + size, left : left + size].copy())
        for d, v, top, left in zip(
            integers(drawing_count).tolist(),
            integers(view_count).tolist(),
            tops.tolist(),
            lefts.tolist(),
            strict=True,
        )
    ]
    colours = torch.randint(256, (count, 3), generator=generator)
    colours[torch.rand(count, generator=generator) < white_share] = 255
    return composite(torch.stack(crops), colours)


def draw_crops(dataset: Dataset, count: int, phase: Phase, generator: torch.Generator) -> Tensor:
    """What a phase trains on, channels last: float32 [count, 3, CROP, CROP]."""
    pictures = draw_pictures(dataset, count, CROP, phase.white_share, generator)
    return pictures.contiguous(memory_format=torch.channels_last)


def psnr_db(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures in [-1, 1], those of the batch together."""
    return -10.0 * torch.log10(F.mse_loss(output_BCHW.clamp(-1, 1), target_BCHW) / 4.0)


def autoencoder_loss(
    model: AutoencoderTiny, dataset: Dataset, phase: Phase, batch: int, device: torch.device
) -> LossFunction:
    """The loss of encoder and decoder together on random crops."""

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = draw_crops(dataset, batch, phase, generator).to(device)
        latents = model.encoder(pictures).float()
        noise = torch.randn(latents.shape, generator=generator).to(device)
        output = model.decoder(latents + phase.latent_noise * noise).float()
        reconstruction = picture_loss(output, pictures)
        penalty = moment_penalty(latents)
        metrics = {"psnr_db": psnr_db(output.detach(), pictures), "moments": penalty}
        return reconstruction + 0.02 * penalty, metrics

    return loss


def as_modules(model: AutoencoderTiny) -> dict[str, nn.Module]:
    """The name under which checkpoints hold the autoencoder."""
    return {"vae": model}
