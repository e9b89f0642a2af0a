"""The stages: they train a little, measure themselves, resume, and start from older weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPTextModel, CLIPTokenizer

from models.recipe import denoiser, stages
from models.recipe.adopt import adopt, transplant
from models.recipe.curve import Curve
from models.recipe.heldout import held_out_pairs
from models.recipe.parallel import Worker
from models.recipe.plan import Plan
from models.recipe.state import State, load_ema
from models.recipe.tokenizer import load_tokenizer, train_tokenizer
from models.recipe.workdir import WorkDir
from tests.models.tiny import CONCEPTS, write_views, write_work_dir

SHIPPED = Path(__file__).parents[2] / "models" / "limner-emoji"
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
    state = State({"layer": layer}, Plan(learning_rate=1.0, step_count=9))
    worker = Worker(rank=0, world_size=1, device=torch.device("cpu"), dtype=torch.float32)
    curve = Curve(work, unet, unet, {}, worker, batch=50, snapshot_every=100)
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


def test_training_may_start_from_the_shipped_weights_with_another_vocabulary(
    tmp_path: Path,
) -> None:
    work = WorkDir(root=tmp_path)
    write_views(tmp_path)
    train_tokenizer(CONCEPTS[:3], work.tokenizer)
    adopt(SHIPPED, work)
    unet = denoiser.build_denoiser()
    load_ema(work.start, {"unet": unet})
    shipped = type(unet).from_pretrained(SHIPPED / "unet").state_dict()
    assert all(torch.equal(value, shipped[key]) for key, value in unet.state_dict().items())
    assert work.start_autoencoder.exists()


def test_tokens_that_two_vocabularies_share_keep_their_meaning(tmp_path: Path) -> None:
    train_tokenizer(CONCEPTS[:3], tmp_path / "tokenizer")
    old_tokenizer = CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer")
    new_tokenizer = load_tokenizer(tmp_path / "tokenizer")
    old = CLIPTextModel.from_pretrained(SHIPPED / "text_encoder")
    new = transplant(old, old_tokenizer, new_tokenizer)
    before, after = (model.get_input_embeddings().get_parameter("weight") for model in (old, new))
    token = "apple</w>"
    assert torch.equal(
        before[old_tokenizer.get_vocab()[token]], after[new_tokenizer.get_vocab()[token]]
    )
    text = "a red apple on a blue background"
    old_state, new_state = (
        model(torch.tensor([tokenizer(text).input_ids])).pooler_output
        for model, tokenizer in ((old, old_tokenizer), (new, new_tokenizer))
    )
    assert old_tokenizer.tokenize(text) == new_tokenizer.tokenize(text)
    assert torch.allclose(old_state, new_state, atol=1e-5)
