"""What each of two workers does in `test_parallel`; importable by spawned processes."""

from __future__ import annotations

import signal
import sys
import threading
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from models.recipe.muon import Muon
from models.recipe.parallel import Worker, launch


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


def learn_by_muon(folder: Path, worker: Worker) -> None:
    """One step of Muon on three matrices and one of another shape; writes them to `folder`."""
    torch.save(after_a_step_of_muon(worker), folder / f"{worker.rank}.pt")


def after_a_step_of_muon(worker: Worker | None) -> list[Tensor]:
    """The same weights and gradients on every worker, after a step."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 6), (4, 6), (4, 6), (3, 8))
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    Muon(parameters, lr=0.1, worker=worker).step()
    return [parameter.detach() for parameter in parameters]


def work_until_told_to_stop(folder: Path, worker: Worker) -> None:
    """Say that it runs; at SIGTERM, say that it saved, and leave as the training loop does."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    (folder / f"{worker.rank}.running").touch()
    while not stopped.wait(0.05):
        pass
    (folder / f"{worker.rank}.saved").touch()
    raise SystemExit(143)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    launch(partial(work_until_told_to_stop, folder), torch.device("cpu"), 2)
