"""A training that is taken up from what ships, on a machine that has nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from models.recipe import denoiser, stages
from models.recipe.export import export, load_autoencoder
from models.recipe.heldout import held_out_pairs
from models.recipe.keep import keep, restored, shrink, take_up
from models.recipe.latents import encode_chunk
from models.recipe.workdir import WorkDir
from tests.models.tiny import CONCEPTS, WORKER, write_completions, write_views, write_work_dir

CPU = stages.Machine(device=torch.device("cpu"))
DRAWINGS = ((0, "3d"), (1, "flat"), min(held_out_pairs(CONCEPTS)))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    return write_work_dir(tmp_path_factory.mktemp("work"), DRAWINGS)


def averaged(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        keys = [key for key in file.keys() if key.startswith("ema/")]  # noqa: SIM118
        return {key: file.get_tensor(key) for key in keys}


def test_weights_come_back_within_half_a_level_of_their_row() -> None:
    weights = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weights[1] *= 1000.0
    weights[2] = 0.0
    again = restored(shrink("unet.weight", weights))["unet.weight"]
    limit = weights.flatten(1).abs().amax(1)[:, None, None, None] / 254.0
    assert ((again - weights).abs() <= limit * 1.001 + 1e-12).all()
    bias = torch.tensor([1.0, -2.5])
    assert torch.equal(restored(shrink("a.bias", bias))["a.bias"], bias)


def test_a_training_goes_on_from_what_ships(work: WorkDir, tmp_path: Path) -> None:
    stages.train_denoiser(work.root, CPU, stages.Budget(sample_count=64))
    export(work, tmp_path / "model")
    keep(work, tmp_path / "text.safetensors")
    other = WorkDir(root=tmp_path / "other")
    take_up(tmp_path / "model", tmp_path / "text.safetensors", other)
    for name in ("denoiser", "text"):
        before, after = averaged(getattr(work, name)), averaged(getattr(other, name))
        assert before.keys() == after.keys()
        for key, weights in before.items():
            tolerance = 1e-6 + float(weights.abs().max()) / 100
            assert torch.allclose(weights, after[key], atol=tolerance), key
    dataset = write_views(other.root, DRAWINGS)
    write_completions(other, dataset)
    stages.train_autoencoder(other.root, CPU, stages.Budget(autoencoder_scale=1e-6))
    encode_chunk(load_autoencoder(other), dataset, other, 0, WORKER)
    stages.train_denoiser(other.root, CPU, stages.Budget(sample_count=128))
    with safe_open(other.denoiser, "pt") as file:
        assert file.metadata()["step"] == str(128 // denoiser.ON_CPU.batch)


def test_a_training_that_has_begun_is_not_overwritten(work: WorkDir, tmp_path: Path) -> None:
    export(work, tmp_path / "model")
    keep(work, tmp_path / "text.safetensors")
    before = work.denoiser.read_bytes()
    with pytest.raises(FileExistsError, match="is there already"):
        take_up(tmp_path / "model", tmp_path / "text.safetensors", work)
    assert work.denoiser.read_bytes() == before


def test_what_has_not_begun_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        keep(WorkDir(root=tmp_path), tmp_path / "text.safetensors")


def test_the_shipped_model_can_be_trained_on(tmp_path: Path) -> None:
    work = WorkDir(root=tmp_path)
    recipe = ROOT / "models" / "recipe"
    take_up(recipe.parent / "limner-emoji", recipe / "text.safetensors", work)
    for path in (work.text, work.denoiser):
        assert averaged(path)
