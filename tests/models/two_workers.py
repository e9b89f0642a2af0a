"""What each of two workers does in `test_parallel`; importable by spawned processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from models.recipe.parallel import Worker


def share_everything(folder: Path, worker: Worker) -> None:
    """Average gradients, add up and broadcast; writes the results to `folder`."""
    torch.manual_seed(worker.rank)
    layer = nn.Linear(2, 1)
    worker.broadcast_modules([layer])
    layer(torch.full((1, 2), 1.0 + worker.rank)).sum().backward()
    worker.average_gradients(layer.parameters())
    total = torch.full((2,), 1.0 + worker.rank)
    worker.add_up(total)
    assert layer.weight.grad is not None
    results = [layer.weight.detach()[0], layer.weight.grad[0], total]
    results.append(torch.tensor(worker.share([float(worker.rank + 5), float(worker.leads)])))
    torch.save(torch.stack(results), folder / f"{worker.rank}.pt")
