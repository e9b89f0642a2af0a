"""Muon: what its updates look like, and that it trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.recipe.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 40), (2, 40, 8)])
def test_updates_are_nearly_orthogonal(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_an_update_keeps_its_direction() -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    found = orthogonalize(3.0 * rotation[None])[0].float()
    assert torch.cosine_similarity(found.flatten(), rotation.flatten(), dim=0) > 0.99


def test_updates_have_the_size_of_adamws() -> None:
    convolution = nn.Parameter(torch.randn(16, 16, 3, 3))
    before = convolution.detach().clone()
    convolution.grad = torch.randn_like(before)
    Muon([convolution], lr=1e-2).step()
    size = (convolution - before).square().mean().sqrt()
    assert 0.1 * 1e-2 < size < 0.4 * 1e-2


def test_a_badly_scaled_problem_is_solved() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 12, bias=False)
    inputs = torch.randn(256, 12) * torch.logspace(0, 2, 12).sqrt()
    target = inputs @ torch.randn(12, 12)
    optimizer = Muon(layer.parameters(), lr=0.1)
    losses = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        loss = (layer(inputs) - target).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.02 * losses[0]


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        Muon([nn.Parameter(torch.zeros(3))], lr=1.0)
