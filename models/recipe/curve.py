"""What more training buys: loss on fixed examples while the run goes on, and snapshots to judge.

Called by `stages` as the loop's watcher. Appends one JSON line a measurement to the work folder's
`curve.jsonl`. Does not judge pictures: see `verdicts`, which reads the snapshots later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import CLIPTextModel

from models.recipe.denoiser import Noising
from models.recipe.draws import Draws
from models.recipe.libraries import UNet2DConditionModel
from models.recipe.parallel import Worker
from models.recipe.state import State
from models.recipe.workdir import WorkDir

EXAMPLE_COUNT = 256
_BATCH = 32


class Curve:
    """Measures the averaged weights on examples and noise that never change."""

    def __init__(
        self,
        work: WorkDir,
        denoiser: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        draws: Draws,
        worker: Worker,
        *,
        batch: int,
        snapshot_every: int,
    ) -> None:
        """`batch` and `snapshot_every` count samples; `draws` is what to measure on."""
        self._work, self._worker = work, worker
        self._denoiser, self._text_encoder, self._draws = denoiser, text_encoder, draws
        self._batch, self._snapshot_every = batch, snapshot_every

    def __call__(self, state: State) -> None:
        """Append a line, and write a snapshot if it is time for one."""
        sample_count = state.step * self._batch
        with state.averaged():
            loss = self._loss()
        record = {
            "samples": sample_count,
            "cpu_s": round(state.cpu_s),
            "elapsed_s": round(state.elapsed_s),
            "device": self._worker.device.type,
            "loss_trained": loss,
        }
        append(self._work.curve, record)
        due = sample_count - sample_count % self._snapshot_every
        if due and not self._work.snapshot(due).exists():
            state.save_averaged(self._work.snapshot(due))

    @torch.no_grad()
    def _loss(self) -> float:
        device = self._worker.device
        generator = torch.Generator(device)
        generator.manual_seed(0)
        noising, total = Noising(device), 0.0
        for _ in range(EXAMPLE_COUNT // _BATCH):
            drawn = self._draws.batch(_BATCH, generator)
            share = (torch.arange(_BATCH, device=device) + 0.5) / _BATCH
            noise = torch.randn(drawn.latents_BChw.shape, generator=generator, device=device)
            with self._worker.autocast():
                error = noising.error(self._denoiser, self._text_encoder, drawn, share, noise)
            total += float(error)
        return round(total * _BATCH / EXAMPLE_COUNT, 5)


def append(path: Path, record: Mapping[str, object]) -> None:
    """Add one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
