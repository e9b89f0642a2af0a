"""A work folder of the recipe with a few drawings and untrained weights, made in seconds.

For tests of the stages. The architecture is the real one; drawings are plain shapes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.recipe import autoencoder, denoiser
from models.recipe.captions import load_concepts
from models.recipe.dataset import IMAGE_SIZE, POSES, Dataset, load_dataset
from models.recipe.judge import build_judge
from models.recipe.latents import encode_chunk
from models.recipe.parallel import Worker
from models.recipe.plan import Plan
from models.recipe.state import State
from models.recipe.text import as_modules as text_modules
from models.recipe.text import build_coded_encoder, build_head
from models.recipe.tokenizer import load_tokenizer, train_tokenizer
from models.recipe.translator import Translator, complete
from models.recipe.workdir import WorkDir

CONCEPTS = load_concepts()
DRAWINGS = ((0, "3d"), (0, "flat"), (1, "3d"), (1, "line"))
VIEW_COUNT = len(POSES) + 1
WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"), dtype=torch.float32)


def write_views(root: Path, drawings: tuple[tuple[int, str], ...] = DRAWINGS) -> Dataset:
    """Write premultiplied views of opaque squares, one colour a drawing; returns the dataset."""
    views = np.zeros((len(drawings), VIEW_COUNT, 4, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for index, (_, style) in enumerate(drawings):
        views[index, :, 3, 32:96, 32:96] = 255
        if style != "line":
            views[index, :, index % 3, 32:96, 32:96] = 200
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "views.npy", views)
    labels = [concept.label for concept in CONCEPTS]
    (root / "views.json").write_text(json.dumps({"labels": labels, "drawings": drawings}))
    return load_dataset(root)


def write_completions(work: WorkDir, dataset: Dataset) -> None:
    """Paint what is held out with an untrained translator."""
    complete(Translator(), dataset, work, WORKER)


def write_work_dir(root: Path, drawings: tuple[tuple[int, str], ...] = DRAWINGS) -> WorkDir:
    """Write everything that `export` and the denoiser read; weights are random but fixed."""
    work, dataset = WorkDir(root=root), write_views(root, drawings)
    train_tokenizer(dataset.concepts, work.tokenizer)
    torch.manual_seed(0)
    write_completions(work, dataset)
    vae = autoencoder.build_autoencoder()
    save(autoencoder.as_modules(vae), work.autoencoder(len(autoencoder.PHASES)))
    encode_chunk(vae, dataset, work, 0, WORKER)
    encoder = build_coded_encoder(work, dataset, load_tokenizer(work.tokenizer))
    save(text_modules(encoder, build_head()), work.text)
    save(denoiser.as_modules(denoiser.build_denoiser()), work.denoiser)
    return work


def write_judge(work: WorkDir) -> None:
    """Write an untrained judge of the drawings in the work folder."""
    torch.manual_seed(1)
    save({"judge": build_judge(load_dataset(work.root))}, work.judge)


def save(modules: dict[str, nn.Module], path: Path) -> None:
    """Write a checkpoint at step 0."""
    State(modules, Plan(learning_rate=1e-3, step_count=1)).save(path)
