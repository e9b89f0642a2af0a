"""The loss of a batch: denoising, with prior preservation and signal-to-noise weighting.

Shape legend: B rows, C latent channels, h and w latent sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from services.trainer.run.base_model import DiffusionType


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Losses:
    """Means over the rows of each kind; `total` is what is minimised."""

    total: Tensor
    instance: Tensor
    prior: Tensor | None


def denoising_target(
    scheduler: Any,
    prediction_type: DiffusionType,
    latents_BChw: Tensor,
    noise_BChw: Tensor,
    timesteps_B: Tensor,
) -> Tensor:
    """What the denoiser should return, (B, C, h, w)."""
    match prediction_type:
        case "epsilon":
            return noise_BChw
        case "sample":
            return latents_BChw
        case "v_prediction":
            return cast(Tensor, scheduler.get_velocity(latents_BChw, noise_BChw, timesteps_B))


def min_snr_weights(
    alphas_cumprod: Tensor, timesteps_B: Tensor, gamma: float, prediction_type: DiffusionType
) -> Tensor:
    """Weights (B,) of Hang et al. 2023, equation 11 and appendix: min(SNR, gamma) in terms of x0.

    At zero terminal SNR the weight of noise prediction is 1, its limit.
    """
    power = alphas_cumprod.to(timesteps_B.device)[timesteps_B].float()
    snr = power / (1.0 - power)
    capped = snr.clamp(max=gamma)
    match prediction_type:
        case "epsilon":
            return torch.where(snr > 0.0, capped / snr.clamp(min=1e-12), torch.ones_like(snr))
        case "sample":
            return capped
        case "v_prediction":
            return capped / (snr + 1.0)


def squared_errors(prediction_BChw: Tensor, target_BChw: Tensor) -> Tensor:
    """Mean squared error of every row, (B,), in float32."""
    return (prediction_BChw.float() - target_BChw.float()).square().mean(dim=(1, 2, 3))


def losses_of(
    errors_B: Tensor, weights_B: Tensor | None, *, instance_count: int, prior_weight: float
) -> Losses:
    """The first `instance_count` rows are the subject's, the others the class's."""
    if weights_B is not None:
        errors_B = errors_B * weights_B
    instance = errors_B[:instance_count].mean()
    if instance_count == len(errors_B):
        return Losses(total=instance, instance=instance, prior=None)
    prior = errors_B[instance_count:].mean()
    return Losses(total=instance + prior_weight * prior, instance=instance, prior=prior)
