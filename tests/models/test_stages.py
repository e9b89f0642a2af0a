"""The stages: they train a little, measure themselves, and resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from models.recipe import denoiser, stages
from models.recipe.curve import Curve
from models.recipe.dataset import load_dataset
from models.recipe.draws import Draws
from models.recipe.heldout import held_out_pairs
from models.recipe.latents import load_latents
from models.recipe.parallel import Worker
from models.recipe.plan import Plan
from models.recipe.state import State, load_ema
from models.recipe.text import build_coded_encoder
from models.recipe.tokenizer import load_tokenizer
from models.recipe.workdir import WorkDir
from tests.models.tiny import CONCEPTS, write_work_dir

CPU = stages.Machine(device=torch.device("cpu"))


def steps_of(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    pair = min(held_out_pairs(CONCEPTS))
    drawings = ((0, "3d"), (1, "flat"), pair)
    return write_work_dir(tmp_path_factory.mktemp("work"), drawings)


def test_the_denoiser_trains_towards_a_count_of_samples_and_goes_on(work: WorkDir) -> None:
    work.denoiser.unlink()
    for sample_count in (64, 96):
        stages.train_denoiser(work.root, CPU, stages.Budget(sample_count=sample_count))
        assert steps_of(work.denoiser) == sample_count // denoiser.ON_CPU.batch


def test_the_autoencoder_text_and_latents_are_made_once(work: WorkDir) -> None:
    budget = stages.Budget(autoencoder_scale=1e-6, text_minutes=1e-6, latent_chunks=2)
    stages.train_autoencoder(work.root, CPU, budget)
    stages.train_text(work.root, CPU, budget)
    stages.encode_latents(work.root, CPU, budget)
    assert len(work.latent_chunks) == 2
    written = [path.stat().st_mtime_ns for path in work.latent_chunks]
    stages.encode_latents(work.root, CPU, budget)
    assert written == [path.stat().st_mtime_ns for path in work.latent_chunks]


@pytest.mark.parametrize("name", ["text_minutes", "sample_count", "latent_chunks"])
def test_a_budget_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="greater than zero"):
        stages.Budget(**{name: 0})


def test_the_curve_measures_averaged_weights_and_keeps_snapshots(work: WorkDir) -> None:
    unet, layer = denoiser.build_denoiser(), torch.nn.Linear(2, 2)
    dataset, tokenizer = load_dataset(work.root), load_tokenizer(work.tokenizer)
    encoder = build_coded_encoder(work, dataset, tokenizer)
    state = State({"layer": layer}, Plan(learning_rate=1.0, step_count=9))
    worker = Worker(rank=0, world_size=1, device=torch.device("cpu"), dtype=torch.float32)
    encoded = load_latents(dataset, work.latent_chunks[:1])
    draws = Draws(encoded, dataset, tokenizer, 1.0, caption_count=1)
    curve = Curve(work, unet, encoder, draws, worker, batch=50, snapshot_every=100)
    with torch.no_grad():
        layer.weight += 1.0
    before = layer.weight.detach().clone()
    for state.step in (1, 3, 5):
        curve(state)
    assert torch.equal(layer.weight, before), "the live weights must come back"
    lines = [json.loads(line) for line in work.curve.read_text().splitlines()]
    assert [line["samples"] for line in lines[-3:]] == [50, 150, 250]
    assert [path.stem for path in work.snapshots] == ["0000000100", "0000000200"]
    load_ema(work.snapshots[0], {"layer": layer})
    assert torch.allclose(layer.weight, before - 1.0, atol=2e-3)
