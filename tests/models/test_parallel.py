"""Two CPU processes that train one model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from models.recipe.parallel import launch
from tests.models.two_workers import share_everything


def test_two_workers_share_weights_gradients_and_numbers(tmp_path: Path) -> None:
    launch(partial(share_everything, tmp_path), torch.device("cpu"), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    _, gradient, total, shared = first
    assert gradient.tolist() == [1.5, 1.5]
    assert total.tolist() == [3.0, 3.0]
    assert shared.tolist() == [5.0, 1.0]
