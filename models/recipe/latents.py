"""Stage 3: every view encoded once, so that the denoiser's steps cost no encoder.

Called by the command line. Each view is encoded on white and on a few random colours of the
palette. Does not scale latents: `latent_scale` says by what the denoiser and the pipeline do.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.recipe.captions import BACKGROUNDS
from models.recipe.dataset import UNMIRRORED_VIEW_COUNT, Dataset, Drawing, composite
from models.recipe.libraries import AutoencoderTiny
from models.recipe.parallel import Worker
from models.recipe.workdir import WorkDir

VIEW_COUNT = UNMIRRORED_VIEW_COUNT
COLOURED_COUNT = 3
"""Random backgrounds a view, beside white."""


@dataclass(frozen=True, kw_only=True)
class EncodedViews:
    """Latents of all views of all drawings.

    `latents`: float16 [drawing, view, 1 + coloured, 4, h, w], slot 0 on white. `backgrounds`:
    index into the palette of each coloured slot, int64 [drawing, view, coloured].
    """

    drawings: tuple[Drawing, ...]
    latents: Tensor
    backgrounds: np.ndarray

    def background(self, drawing: int, view: int, slot: int) -> str | None:
        """Name of the colour behind one latent; None for plain white."""
        if slot == 0:
            return None
        return tuple(BACKGROUNDS)[int(self.backgrounds[drawing, view, slot - 1])]


def latent_scale(latents: Tensor) -> float:
    """The pipeline's `scaling_factor`: one over the standard deviation of all latents."""
    return 1.0 / float(latents.float().std())


def encode_views(
    model: AutoencoderTiny, dataset: Dataset, work: WorkDir, worker: Worker, *, seed: int = 5
) -> None:
    """Encode all views, each worker its share, and write `latents` and `latent_backgrounds`."""
    drawing_count = len(dataset.drawings)
    view_count = min(VIEW_COUNT, dataset.views.shape[1])
    shape = (drawing_count, view_count, COLOURED_COUNT)
    backgrounds = np.random.default_rng(seed).integers(0, len(BACKGROUNDS), shape)
    palette = torch.tensor(list(BACKGROUNDS.values()))
    white = torch.full((view_count, 3), 255)
    latents: Tensor | None = None
    for index in range(worker.rank, drawing_count, worker.world_size):
        views = torch.from_numpy(np.array(dataset.views[index, :view_count]))
        chosen = [palette[torch.from_numpy(slot)] for slot in backgrounds[index].T]
        slots = [_encode(model, composite(views, c), worker) for c in (white, *chosen)]
        encoded = torch.stack(slots, dim=1)
        if latents is None:
            latents = torch.zeros(drawing_count, *encoded.shape)
        latents[index] = encoded
    assert latents is not None, "more workers than drawings"
    worker.add_up(latents)
    if worker.leads:
        _write(work, latents.half().numpy(), backgrounds)


def load_latents(dataset: Dataset, work: WorkDir) -> EncodedViews:
    """Read what `encode_views` wrote; raises ValueError when it is of other drawings."""
    latents = torch.from_numpy(np.load(work.latents))
    if len(latents) != len(dataset.drawings):
        raise ValueError(f"{work.latents} was encoded from other drawings: remove it")
    return EncodedViews(
        drawings=dataset.drawings,
        latents=latents,
        backgrounds=np.load(work.latent_backgrounds),
    )


@torch.no_grad()
def _encode(model: AutoencoderTiny, pictures_BCHW: Tensor, worker: Worker) -> Tensor:
    pictures = pictures_BCHW.to(worker.device).contiguous(memory_format=torch.channels_last)
    with worker.autocast():
        latents: Tensor = model.encoder(pictures)
    return latents.float().cpu()


def _write(work: WorkDir, latents: np.ndarray, backgrounds: np.ndarray) -> None:
    for path, array in ((work.latent_backgrounds, backgrounds), (work.latents, latents)):
        partial = path.with_suffix(".partial.npy")
        np.save(partial, array)
        os.replace(partial, path)
