"""How noise is put on latents in training, and what the denoiser should make of it, by family.

Used by the learner. Noise levels are places in the family's table of 1,000 or so: `Diffusion` has
those of a DDPM (SD 1.x, SDXL), `Flow` those of a rectified flow (SD3; Esser et al. 2024).

Shape legend: B rows, C latent channels, h and w latent sides.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, Protocol, cast

from torch import Tensor

from services.trainer.run.base_model import BaseModel, DiffusionType
from services.trainer.run.objective import denoising_target, min_snr_weights


class Noising(Protocol):
    """Noise levels of a family; `levels_B` are places in its table."""

    def drawn_level(self, share: float) -> int:
        """Where a uniform draw from [0, 1) falls in training."""
        ...

    def level(self, share: float) -> int:
        """The place at a share of the noise, 0 the least."""
        ...

    def noisy(self, latents_BChw: Tensor, noise_BChw: Tensor, levels_B: Tensor) -> Tensor:
        """What the denoiser sees, (B, C, h, w)."""
        ...

    def times(self, levels_B: Tensor) -> Tensor:
        """How the denoiser is told of the levels, (B,)."""
        ...

    def target(self, latents_BChw: Tensor, noise_BChw: Tensor, levels_B: Tensor) -> Tensor:
        """What it should return, (B, C, h, w)."""
        ...


class Diffusion:
    """See `Noising`; levels are drawn evenly."""

    def __init__(self, scheduler: Any, prediction_type: DiffusionType) -> None:
        self._scheduler, self._kind = scheduler, prediction_type
        self._count = int(scheduler.config.num_train_timesteps)

    def drawn_level(self, share: float) -> int:
        """See `Noising`."""
        return int(share * self._count)

    def level(self, share: float) -> int:
        """See `Noising`."""
        return int(share * self._count)

    def noisy(self, latents_BChw: Tensor, noise_BChw: Tensor, levels_B: Tensor) -> Tensor:
        """See `Noising`."""
        return cast(Tensor, self._scheduler.add_noise(latents_BChw, noise_BChw, levels_B))

    def times(self, levels_B: Tensor) -> Tensor:
        """See `Noising`."""
        return levels_B

    def target(self, latents_BChw: Tensor, noise_BChw: Tensor, levels_B: Tensor) -> Tensor:
        """See `Noising`."""
        return denoising_target(self._scheduler, self._kind, latents_BChw, noise_BChw, levels_B)

    def weights(self, levels_B: Tensor, gamma: float) -> Tensor:
        """Weights (B,) of min-SNR."""
        return min_snr_weights(self._scheduler.alphas_cumprod, levels_B, gamma, self._kind)


class Flow:
    """See `Noising`: straight lines from latents to noise, levels drawn logit-normally.

    Esser et al. 2024: z = (1 - sigma) x + sigma noise, the denoiser is to return noise - x, and
    training favours the middle, logit(t) ~ N(0, 1) (their equation 19 with m = 0 and s = 1).
    """

    def __init__(self, scheduler: Any) -> None:
        # From all noise to almost none, shifted as the model's configuration wants.
        self._sigmas: Tensor = scheduler.sigmas
        self._times: Tensor = scheduler.timesteps

    def drawn_level(self, share: float) -> int:
        """See `Noising`."""
        # A share of 0 has no quantile; draws have 53 bits.
        quantile = NormalDist().inv_cdf(max(share, 2.0**-53))
        return int(len(self._times) / (1.0 + math.exp(-quantile)))

    def level(self, share: float) -> int:
        """See `Noising`."""
        return int((1.0 - share) * len(self._times))

    def noisy(self, latents_BChw: Tensor, noise_BChw: Tensor, levels_B: Tensor) -> Tensor:
        """See `Noising`."""
        sigmas = self._sigmas.to(levels_B.device)[levels_B][:, None, None, None]
        return (1.0 - sigmas) * latents_BChw + sigmas * noise_BChw

    def times(self, levels_B: Tensor) -> Tensor:
        """See `Noising`."""
        return self._times.to(levels_B.device)[levels_B]

    def target(self, latents_BChw: Tensor, noise_BChw: Tensor, levels_B: Tensor) -> Tensor:
        """See `Noising`."""
        return noise_BChw - latents_BChw


def noising_of(base: BaseModel, scheduler: Any) -> Noising:
    """That of a model."""
    if base.prediction_type == "flow":
        return Flow(scheduler)
    return Diffusion(scheduler, base.prediction_type)
