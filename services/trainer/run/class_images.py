"""Pictures of the class for prior preservation, drawn by the base model before training.

Called once at the start of a run, before any weight changes. Each picture has a seed of its own,
and lies in a folder named by the content of everything it depends on: a second run, or the same one
after a restart, finds what is there and draws the rest. Processes that draw at the same time only
waste work: they write the same pictures, and each appears whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL.Image import Image

from services.trainer.run import randomness
from services.trainer.run.components import Components
from services.trainer.run.configuration import PriorSection
from services.trainer.run.dataset import Picture
from services.trainer.run.reading import CheckedRun


def class_folder(run: CheckedRun, prior: PriorSection) -> Path:
    """Where the run's class pictures are, or will be."""
    decisive = {
        "base": run.base_revision,
        "prompt": prior.prompt,
        "side": run.side,
        "step_count": prior.step_count,
        "guidance_scale": prior.guidance_scale,
        # A row's last bits depend on how many rows are computed with it.
        "batch_size": prior.batch_size,
        "seed": run.configuration.optimization.seed,
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]
    return run.configuration.class_image_cache / digest


def ensure_class_pictures(
    run: CheckedRun,
    components: Components,
    *,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> tuple[Picture, ...]:
    """The class pictures in order; those that are missing are drawn.

    `progress` is called with pictures done and pictures in all, between batches, and may raise.
    """
    prior = run.configuration.prior
    if prior is None:
        return ()
    if run.class_pictures:
        return run.class_pictures
    folder = class_folder(run, prior)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:06d}.png" for index in range(prior.image_count)]
    progress(sum(path.is_file() for path in paths), len(paths))
    # Always whole batches of the same neighbours, so that a picture is the same to the bit
    # whichever others are there already, and however many are wanted.
    for start in range(0, len(paths), prior.batch_size):
        batch = range(start, start + prior.batch_size)
        wanted = {index: paths[index] for index in batch if index < len(paths)}
        if all(path.is_file() for path in wanted.values()):
            continue
        for index, image in zip(batch, _draw(run, components, prior, batch, device), strict=True):
            if index in wanted and not wanted[index].is_file():
                _save(image, wanted[index])
        progress(sum(path.is_file() for path in paths), len(paths))
    return tuple(_picture(path) for path in paths)


def _draw(
    run: CheckedRun,
    components: Components,
    prior: PriorSection,
    indices: Sequence[int],
    device: torch.device,
) -> Iterator[Image]:
    seed = run.configuration.optimization.seed
    pipeline = components.pipeline(device, with_text=True)
    with torch.inference_mode():
        drawn = pipeline(
            [prior.prompt] * len(indices),
            height=run.side,
            width=run.side,
            num_inference_steps=prior.step_count,
            guidance_scale=prior.guidance_scale,
            generator=[randomness.generator(seed, "class picture", i) for i in indices],
        )
    yield from drawn.images


def _save(image: Image, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    image.save(partial, "PNG")
    os.replace(partial, path)


def _picture(path: Path) -> Picture:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Picture(path=path, digest=digest, caption=None)
