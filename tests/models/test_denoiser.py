"""What the denoiser is trained on: noise and pictures in the right mixture, where they count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.recipe.denoiser import (
    MISLED_BELOW,
    MISLED_SHARE,
    Noising,
    build_scheduler,
    denoiser_loss,
)
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


class _SameDraws:
    """Pictures of which each one's caption is a number of its own."""

    def batch(self, count: int, _: torch.Generator) -> LatentBatch:
        numbers = torch.arange(count)
        return LatentBatch(
            tokens_BL=numbers[:, None].expand(-1, 77),
            latents_BChw=torch.zeros(count, 4, 2, 2),
            own_B1hw=torch.ones(count, 1, 2, 2, dtype=torch.bool),
        )


def test_some_captions_are_wrong_where_much_of_the_picture_can_be_seen() -> None:
    count = 40_000
    told: dict[str, torch.Tensor] = {}

    def encode(tokens: torch.Tensor) -> Any:
        told["tokens"] = tokens[:, 0]
        return (None,)

    def answer(noisy: torch.Tensor, steps: torch.Tensor, _: object) -> Any:
        told["steps"] = steps
        return _answer_nothing(noisy)

    draws: Any = _SameDraws()
    loss = denoiser_loss(answer, encode, draws, count, torch.device("cpu"))
    loss(torch.Generator().manual_seed(0))
    wrong, steps = told["tokens"] != torch.arange(count), told["steps"]
    limit = 1000 * MISLED_BELOW
    assert not wrong[steps > limit].any()
    for low in range(0, int(limit), 100):
        inside = (steps >= low) & (steps < low + 100)
        expected = MISLED_SHARE * (1 - (low + 50) / limit)
        assert float(wrong[inside].float().mean()) == pytest.approx(expected, abs=0.03)
