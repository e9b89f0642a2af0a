"""Polishing the decoder: it and its critic pull against each other; latents stay as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.recipe import decoder, stages
from models.recipe.autoencoder import build_autoencoder
from models.recipe.decoder import Critic, decoder_loss
from models.recipe.export import load_autoencoder
from tests.models.tiny import write_views, write_work_dir

CPU = stages.Machine(device=torch.device("cpu"))


def gradients(module: torch.nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def test_neither_moves_the_others_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_views(tmp_path)
    torch.manual_seed(0)
    model, critic = build_autoencoder(), Critic()
    loss = decoder_loss(model, critic, dataset, 2, torch.device("cpu"))

    def step(weight: float) -> tuple[list[Tensor], list[Tensor]]:
        monkeypatch.setattr(decoder, "CRITIC_WEIGHT", weight)
        model.zero_grad()
        critic.zero_grad()
        value, _ = loss(torch.Generator().manual_seed(0))
        value.backward()  # type: ignore[no-untyped-call]
        return gradients(model.decoder), gradients(critic)

    alone, with_critic = step(0.0), step(1.0)
    assert gradients(model.encoder) == []
    assert all(torch.equal(a, b) for a, b in zip(alone[1], with_critic[1], strict=True))
    assert not all(torch.allclose(a, b) for a, b in zip(alone[0], with_critic[0], strict=True))


def test_the_critic_learns_to_tell_decoded_pictures(tmp_path: Path) -> None:
    dataset = write_views(tmp_path)
    torch.manual_seed(0)
    model, critic = build_autoencoder(), Critic()
    loss = decoder_loss(model, critic, dataset, 2, torch.device("cpu"))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    judged = []
    for _ in range(15):
        value, figures = loss(torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        judged.append(float(figures["critic"]))
    assert judged[-1] < 0.7 * judged[0], "the critic must tell real pictures from decoded ones"


def test_the_stage_changes_the_decoder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = write_work_dir(tmp_path)
    before = load_autoencoder(work).state_dict()
    short = replace(decoder.PHASE, minutes=1e-3)
    monkeypatch.setattr(decoder, "PHASE", short)
    stages.polish_decoder(work.root, CPU)
    after = load_autoencoder(work).state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(key.startswith("decoder.") for key in changed)
