"""The stages in order: what each reads from the work folder, how long it trains, what it writes.

Called by the command line. A stage that is done returns at once; one that was cut off goes on from
its checkpoint. Two processes share a CPU, one owns a GPU and takes larger batches.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from models.recipe import autoencoder, control, decoder, denoiser, text, translator
from models.recipe.captions import load_concepts
from models.recipe.curve import Curve
from models.recipe.dataset import find_artist, load_dataset
from models.recipe.draws import SURROUNDED_SHARE, Draws
from models.recipe.emphasis import read_emphasis
from models.recipe.export import load_autoencoder
from models.recipe.latents import encode_chunk, load_latents, work_scale
from models.recipe.libraries import StableDiffusionPipeline
from models.recipe.loop import train
from models.recipe.pack import pack
from models.recipe.parallel import Worker, launch
from models.recipe.plan import Plan
from models.recipe.state import load_ema
from models.recipe.text import build_coded_encoder, build_head
from models.recipe.tokenizer import add_new_names, load_tokenizer, train_tokenizer
from models.recipe.workdir import WorkDir

TEXT_BATCH = 128
CONTROL_BATCH = 16
TEXT_MINUTES = {"cpu": 90.0, "cuda": 3.0}
"""By the kind of device, unless a budget says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much training each stage gets."""

    autoencoder_scale: float = 1.0
    """Factor on the minutes of the autoencoder's phases."""
    text_minutes: float | None = None
    """None: as `TEXT_MINUTES`."""
    sample_count: int = 2_120_000
    """Pictures that the denoiser sees on a CPU."""
    denoiser_minutes: float = 14.0
    """What the denoiser gets on a GPU."""
    latent_chunks: int = 4

    def __post_init__(self) -> None:
        """Raise ValueError unless every stage gets something to do."""
        values = [getattr(self, name) for name in self.__slots__]
        if any(value is not None and value <= 0 for value in values):
            raise ValueError("every budget must be greater than zero")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What trains: one GPU, or processes of one thread each on a CPU."""

    device: torch.device
    process_count: int = 1

    def run(self, entry: Callable[[Worker], None], process_count: int | None = None) -> None:
        """Run `entry` on every worker and wait."""
        # Idle threads that spin take the cores from other processes.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        count = 1 if self.device.type == "cuda" else process_count or self.process_count
        launch(partial(_enter, entry), self.device, count)


def prepare_data(root: Path) -> None:
    """Fetch and pose the drawings, and train the tokenizer on their captions."""
    load_dataset(root)
    work = WorkDir(root=root)
    if work.tokenizer.exists():
        add_new_names(load_concepts(), work.tokenizer)
    else:
        train_tokenizer(load_concepts(), work.tokenizer)


def pack_drawings(root: Path) -> None:
    """Write all drawings to one file."""
    work = WorkDir(root=root)
    pack(work, load_concepts(), find_artist(work))


def train_autoencoder(root: Path, machine: Machine, budget: Budget) -> None:
    """Both phases, the second from the averaged weights of the first, unless it was taken up."""
    last = len(autoencoder.PHASES)
    begun = WorkDir(root=root).autoencoder(last).exists()
    for number in range(last if begun else 1, last + 1):
        machine.run(partial(_autoencoder_phase, root, number, budget.autoencoder_scale))


def train_text(root: Path, machine: Machine, budget: Budget) -> None:
    """Pre-train the text encoder."""
    minutes = budget.text_minutes or TEXT_MINUTES[machine.device.type]
    machine.run(partial(_text, root, minutes))


def complete_styles(root: Path, machine: Machine, minutes: float) -> None:
    """Train the translator, and have it paint the drawings that are held out."""
    machine.run(partial(_translator, root, minutes))


def encode_latents(root: Path, machine: Machine, budget: Budget) -> None:
    """Encode the chunks that are missing, one process each in turn."""
    for number in range(budget.latent_chunks):
        if not WorkDir(root=root).latents(number).exists():
            machine.run(partial(_latents, root, number), process_count=1)


def train_denoiser(root: Path, machine: Machine, budget: Budget) -> None:
    """Train the denoiser on what the text encoder says."""
    machine.run(partial(_denoiser, root, budget))


def polish_decoder(root: Path, machine: Machine) -> None:
    """Train the decoder alone on crops; optional, latents stay valid."""
    machine.run(partial(_decoder, root))


def train_control(root: Path, model: Path, machine: Machine, minutes: float) -> None:
    """Train a ControlNet beside the model in the folder `model`, and write it out."""
    machine.run(partial(_control, root, model, minutes))


def _enter(entry: Callable[[Worker], None], worker: Worker) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.manual_seed(0)
    if worker.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    entry(worker)


def _placed(modules: dict[str, nn.Module], worker: Worker) -> dict[str, nn.Module]:
    return {name: module.to(worker.device) for name, module in modules.items()}


def _autoencoder_phase(root: Path, number: int, scale: float, worker: Worker) -> None:
    work, phase = WorkDir(root=root), autoencoder.PHASES[number - 1]
    model = autoencoder.build_autoencoder().to(worker.device, memory_format=torch.channels_last)
    modules = autoencoder.as_modules(model)
    if number > 1 and not work.autoencoder(number).exists():
        load_ema(work.autoencoder(number - 1), modules)
    batch = phase.batch * worker.batch_factor // worker.world_size
    loss = autoencoder.autoencoder_loss(model, load_dataset(root), phase, batch, worker.device)
    train(modules, loss, _plan(phase, scale), work.autoencoder(number), worker)


def _decoder(root: Path, worker: Worker) -> None:
    work, critic = WorkDir(root=root), decoder.Critic().to(worker.device)
    model = load_autoencoder(work).to(worker.device, memory_format=torch.channels_last)
    batch = decoder.PHASE.batch * worker.batch_factor // worker.world_size
    loss = decoder.decoder_loss(model, critic, load_dataset(root), batch, worker.device)
    plan = _plan(decoder.PHASE, 1.0, muon=True)
    train(decoder.as_modules(model, critic), loss, plan, work.decoder, worker)


def _plan(phase: autoencoder.Phase, scale: float, *, muon: bool = False) -> Plan:
    return Plan(
        learning_rate=phase.learning_rate,
        budget_s=60.0 * phase.minutes * scale,
        ema_decay=phase.ema_decay,
        weight_decay=0.0,
        muon=muon,
        seed=phase.seed,
    )


def _text(root: Path, minutes: float, worker: Worker) -> None:
    work, dataset = WorkDir(root=root), load_dataset(root)
    tokenizer = load_tokenizer(work.tokenizer)
    encoder, head = build_coded_encoder(work, dataset, tokenizer), build_head()
    modules = _placed(text.as_modules(encoder, head), worker)
    encoder.set_attn_implementation("eager")
    encoded = load_latents(dataset, work.latent_chunks)
    scale = work_scale(work)
    draws = Draws(encoded, dataset, tokenizer, scale, caption_count=8, centred=True)
    batch = TEXT_BATCH * worker.batch_factor // worker.world_size
    loss = text.text_loss(encoder, head, draws.to(worker.device), batch, worker.device)
    plan = Plan(learning_rate=2e-3, budget_s=60.0 * minutes, ema_decay=0.995, muon=True)
    train(modules, loss, plan, work.text, worker)


def _translator(root: Path, minutes: float, worker: Worker) -> None:
    work, dataset = WorkDir(root=root), load_dataset(root)
    model = translator.Translator().to(worker.device)
    batch = translator.BATCH * worker.batch_factor // worker.world_size
    loss = translator.translator_loss(model, dataset, batch, worker.device)
    plan = Plan(learning_rate=2e-3, budget_s=60.0 * minutes, ema_decay=0.99, muon=True)
    modules: dict[str, nn.Module] = {"translator": model}
    train(modules, loss, plan, work.translator, worker)
    if worker.leads and not _newer(work.completions, work.translator):
        load_ema(work.translator, modules)
        translator.complete(model, dataset, work, worker)


def _newer(made: Path, source: Path) -> bool:
    return made.exists() and made.stat().st_mtime_ns >= source.stat().st_mtime_ns


def _latents(root: Path, number: int, worker: Worker) -> None:
    work = WorkDir(root=root)
    model = load_autoencoder(work).to(worker.device, memory_format=torch.channels_last)
    encode_chunk(model, load_dataset(root), work, number, worker)


def _denoiser(root: Path, budget: Budget, worker: Worker) -> None:
    work, dataset = WorkDir(root=root), load_dataset(root)
    on_gpu = worker.device.type == "cuda"
    training = denoiser.ON_GPU if on_gpu else denoiser.ON_CPU
    tokenizer = load_tokenizer(work.tokenizer)
    encoder, unet = build_coded_encoder(work, dataset, tokenizer), denoiser.build_denoiser()
    load_ema(work.text, {"text": encoder})
    _placed({"text": encoder.requires_grad_(False)}, worker)
    modules = _placed(denoiser.as_modules(unet), worker)
    scale = work_scale(work)

    def draws(chunks: Sequence[Path], *, emphasis: Mapping[int, float], around: float) -> Draws:
        made = Draws(
            load_latents(dataset, chunks),
            dataset,
            tokenizer,
            scale,
            caption_count=training.caption_count,
            emphasis=emphasis,
            surrounded_share=around,
        )
        return made.to(worker.device)

    # Measured on the first chunk, whatever is encoded later.
    measured = draws(work.latent_chunks[:1], emphasis={}, around=0.0)
    everything = draws(work.latent_chunks, emphasis=read_emphasis(work), around=SURROUNDED_SHARE)
    plan = Plan(
        learning_rate=training.learning_rate,
        step_count=None if on_gpu else budget.sample_count // training.batch,
        budget_s=60.0 * budget.denoiser_minutes if on_gpu else None,
        cooldown=training.cooldown,
        ema_decay=training.ema_decay,
        muon=True,
        save_every_s=240.0,
        watch_every=training.watch_every,
    )
    watch = Curve(
        work,
        unet,
        encoder,
        measured,
        worker,
        batch=training.batch,
        snapshot_every=training.snapshot_every,
    )
    share = training.batch // worker.world_size
    denoiser.make_fast(unet, encoder, worker.device)
    loss = denoiser.denoiser_loss(unet, encoder, everything, share, worker.device)
    train(modules, loss, plan, work.denoiser, worker, watch)


def _control(root: Path, folder: Path, minutes: float, worker: Worker) -> None:
    work, device = WorkDir(root=root), worker.device
    pipeline = StableDiffusionPipeline.from_pretrained(str(folder)).to(device)
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        part.requires_grad_(False)
    net = control.build_control(pipeline.unet).to(device)
    denoiser.make_fast(pipeline.unet, pipeline.text_encoder, device)
    loss = control.control_loss(
        net,
        pipeline.unet,
        pipeline.text_encoder,
        pipeline.vae,
        pipeline.tokenizer,
        load_dataset(root),
        pipeline.vae.config.scaling_factor,
        CONTROL_BATCH * worker.batch_factor // worker.world_size,
        device,
    )
    plan = Plan(learning_rate=1e-3, budget_s=60.0 * minutes, warmup_steps=50, ema_decay=0.99)
    train(control.as_modules(net), loss, plan, work.control, worker)
    if worker.leads:
        load_ema(work.control, control.as_modules(net))
        control.export_control(net, control.control_folder(folder))
