"""The stages in order: what each reads from the work folder, how long it trains, what it writes.

Called by the command line. A stage that is done returns at once; one that was cut off goes on from
its checkpoint. Two processes share a CPU, one owns a GPU and takes larger batches.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from models.recipe import autoencoder, denoiser, text
from models.recipe.captions import load_concepts
from models.recipe.dataset import load_dataset
from models.recipe.export import load_autoencoder
from models.recipe.latents import encode_views, load_latents
from models.recipe.loop import Plan, load_ema, train
from models.recipe.parallel import Worker, launch
from models.recipe.text import build_heads, build_text_encoder
from models.recipe.tokenizer import load_tokenizer, train_tokenizer
from models.recipe.workdir import WorkDir

TEXT_BATCH = 128
DENOISER_BATCH = 16
"""For one CPU process."""
GPU_BATCH_FACTOR = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Minutes of training; the defaults are what the shipped model took on two CPU cores."""

    autoencoder_scale: float = 1.0
    """Factor on the minutes of both phases of the autoencoder."""
    text_minutes: float = 2.2
    denoiser_scale: float = 1.0
    """Factor on the minutes of both rounds of the denoiser."""

    def __post_init__(self) -> None:
        """Raise ValueError unless every stage gets some time."""
        if min(self.autoencoder_scale, self.text_minutes, self.denoiser_scale) <= 0.0:
            raise ValueError("every budget must be greater than zero")


def prepare_data(root: Path) -> None:
    """Fetch and pose the drawings, and train the tokenizer on their captions."""
    load_dataset(root)
    work = WorkDir(root=root)
    if not work.tokenizer.exists():
        train_tokenizer(load_concepts(), work.tokenizer)


def train_autoencoder(root: Path, budget: Budget) -> None:
    """Both phases; the second starts from the averaged weights of the first."""
    for number in range(1, len(autoencoder.PHASES) + 1):
        _launch(partial(_autoencoder_phase, root, number, budget.autoencoder_scale))


def train_text(root: Path, budget: Budget) -> None:
    """Pre-train the text encoder; one process is enough."""
    _launch(partial(_text, root, budget.text_minutes), process_count=1)


def encode_latents(root: Path) -> None:
    """Encode every view, unless it was done before."""
    if not WorkDir(root=root).latents.exists():
        _launch(partial(_latents, root))


def train_denoiser(root: Path, budget: Budget) -> None:
    """Train denoiser and text encoder together, in rounds."""
    for number in range(1, len(denoiser.ROUNDS) + 1):
        _launch(partial(_denoiser, root, number, budget.denoiser_scale))


def polish_decoder(root: Path) -> None:
    """Train the decoder alone on crops; optional, latents stay valid."""
    _launch(partial(_decoder, root))


def _launch(entry: Callable[[Worker], None], process_count: int = 2) -> None:
    on_gpu = torch.cuda.is_available()
    # Idle threads that spin take the cores from the other process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    device = torch.device("cuda" if on_gpu else "cpu")
    launch(partial(_enter, entry), device, 1 if on_gpu else process_count)


def _enter(entry: Callable[[Worker], None], worker: Worker) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.manual_seed(0)
    entry(worker)


def _placed(modules: dict[str, nn.Module], worker: Worker) -> dict[str, nn.Module]:
    return {name: module.to(worker.device) for name, module in modules.items()}


def _batch(cpu_batch: int, worker: Worker) -> int:
    return cpu_batch * (GPU_BATCH_FACTOR if worker.device.type == "cuda" else 1)


def _autoencoder_phase(root: Path, number: int, scale: float, worker: Worker) -> None:
    work, phase = WorkDir(root=root), autoencoder.PHASES[number - 1]
    model = autoencoder.build_autoencoder().to(worker.device, memory_format=torch.channels_last)
    modules = autoencoder.as_modules(model)
    if number > 1:
        load_ema(work.autoencoder(number - 1), modules)
    batch = _batch(phase.batch, worker)
    loss = autoencoder.autoencoder_loss(model, load_dataset(root), phase, batch, worker.device)
    train(modules, loss, _plan(phase, scale), work.autoencoder(number), worker)


def _decoder(root: Path, worker: Worker) -> None:
    work, phase = WorkDir(root=root), autoencoder.DECODER_PHASE
    model = load_autoencoder(work).to(worker.device, memory_format=torch.channels_last)
    batch = _batch(phase.batch, worker)
    loss = autoencoder.decoder_loss(model, load_dataset(root), phase, batch, worker.device)
    train(autoencoder.decoder_modules(model), loss, _plan(phase, 1.0), work.decoder, worker)


def _plan(phase: autoencoder.Phase, scale: float) -> Plan:
    return Plan(
        learning_rate=phase.learning_rate,
        budget_s=60.0 * phase.minutes * scale,
        ema_decay=phase.ema_decay,
        weight_decay=0.0,
        seed=phase.seed,
    )


def _text(root: Path, minutes: float, worker: Worker) -> None:
    work, dataset = WorkDir(root=root), load_dataset(root)
    tokenizer = load_tokenizer(work.tokenizer)
    encoder = build_text_encoder(tokenizer)
    heads = build_heads(len(dataset.concepts))
    modules = _placed(text.as_modules(encoder, heads), worker)
    loss = text.text_loss(encoder, heads, tokenizer, dataset, TEXT_BATCH, worker.device)
    plan = Plan(learning_rate=1.5e-3, budget_s=60.0 * minutes, warmup_steps=50, ema_decay=0.99)
    train(modules, loss, plan, work.text, worker)


def _latents(root: Path, worker: Worker) -> None:
    work = WorkDir(root=root)
    model = load_autoencoder(work).to(worker.device, memory_format=torch.channels_last)
    encode_views(model, load_dataset(root), work, worker)


def _denoiser(root: Path, number: int, scale: float, worker: Worker) -> None:
    work, dataset, training = WorkDir(root=root), load_dataset(root), denoiser.ROUNDS[number - 1]
    tokenizer = load_tokenizer(work.tokenizer)
    encoder = build_text_encoder(tokenizer)
    unet = denoiser.build_denoiser()
    modules = _placed(denoiser.as_modules(unet, encoder), worker)
    if number == 1:
        load_ema(work.text, {"text": encoder})
    else:
        load_ema(work.denoiser(number - 1), modules)
    if worker.device.type == "cpu":
        denoiser.use_math_attention(unet, encoder)
    loss = denoiser.denoiser_loss(
        unet,
        encoder,
        tokenizer,
        load_latents(dataset, work),
        dataset.concepts,
        training,
        _batch(DENOISER_BATCH, worker),
        worker.device,
    )
    plan = Plan(
        learning_rate=training.learning_rate,
        budget_s=60.0 * training.minutes * scale,
        ema_decay=training.ema_decay,
        seed=training.seed,
    )
    train(modules, loss, plan, work.denoiser(number), worker)
