"""A work folder of the recipe with two drawings and untrained weights, made in a second or two.

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
from models.recipe.dataset import IMAGE_SIZE, Dataset, load_dataset
from models.recipe.latents import encode_views
from models.recipe.loop import Plan, State
from models.recipe.parallel import Worker
from models.recipe.text import build_text_encoder
from models.recipe.tokenizer import load_tokenizer, train_tokenizer
from models.recipe.workdir import WorkDir

DRAWINGS = ((0, "3d"), (0, "flat"), (1, "3d"))
VIEW_COUNT = 2
WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"), dtype=torch.float32)


def write_views(root: Path) -> Dataset:
    """Write premultiplied views of opaque squares, one colour a drawing; returns the dataset."""
    views = np.zeros((len(DRAWINGS), VIEW_COUNT, 4, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for index in range(len(DRAWINGS)):
        views[index, :, 3, 32:96, 32:96] = 255
        views[index, :, index, 32:96, 32:96] = 200
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "views.npy", views)
    labels = [concept.label for concept in load_concepts()]
    (root / "views.json").write_text(json.dumps({"labels": labels, "drawings": DRAWINGS}))
    return load_dataset(root)


def write_work_dir(root: Path) -> WorkDir:
    """Write everything that `export` reads; weights are random but fixed."""
    work, dataset = WorkDir(root=root), write_views(root)
    train_tokenizer(dataset.concepts[:3], work.tokenizer)
    torch.manual_seed(0)
    vae = autoencoder.build_autoencoder()
    save(autoencoder.as_modules(vae), work.autoencoder(len(autoencoder.PHASES)))
    encode_views(vae, dataset, work, WORKER)
    encoder = build_text_encoder(load_tokenizer(work.tokenizer))
    save(
        denoiser.as_modules(denoiser.build_denoiser(), encoder), work.denoiser(len(denoiser.ROUNDS))
    )
    return work


def save(modules: dict[str, nn.Module], path: Path) -> None:
    """Write a checkpoint at step 0."""
    State(modules, Plan(learning_rate=1e-3, step_count=1)).save(path)
