"""What the denoiser is trained on: noise and pictures in the right mixture, where they count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.recipe.denoiser import Noising, build_scheduler
from models.recipe.draws import LatentBatch


def _answer_nothing(noisy: torch.Tensor, *_: object) -> Any:
    return SimpleNamespace(sample=torch.zeros_like(noisy))


def _encode_nothing(_: torch.Tensor) -> Any:
    return (None,)


@pytest.mark.parametrize("step", [0, 500, 999])
def test_the_error_counts_only_what_the_caption_speaks_of(step: int) -> None:
    own = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    own[0, :, :8, :8] = own[1] = True
    latents = torch.where(own, 2.0, 1000.0).expand(-1, 4, -1, -1)
    drawn = LatentBatch(
        tokens_BL=torch.zeros(2, 77, dtype=torch.long), latents_BChw=latents, own_B1hw=own
    )
    noising: Any = Noising(torch.device("cpu"))
    share = torch.full((2,), (step + 0.5) / 1000)
    error = noising.error(_answer_nothing, _encode_nothing, drawn, share, torch.ones_like(latents))
    abar = float(build_scheduler().alphas_cumprod[step])
    assert float(error) == pytest.approx((abar**0.5 - 2.0 * (1 - abar) ** 0.5) ** 2, rel=1e-4)
