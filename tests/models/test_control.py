"""The ControlNet for edges, and the sheets of what else the model can do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.recipe import control, proofs, stages
from models.recipe.drawing import Painter
from models.recipe.export import Defaults, export
from models.recipe.libraries import ControlNetModel
from models.recipe.workdir import WorkDir
from tests.models.tiny import write_work_dir

SHIPPED = Path(__file__).parents[2] / "models" / "limner-emoji"
FEW_STEPS = Defaults(step_count=4)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    return write_work_dir(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def folder(work: WorkDir) -> Path:
    target = work.root / "model"
    export(work, target)
    return target


def test_edges_are_where_colour_changes_and_nowhere_else() -> None:
    picture = torch.full((1, 3, 32, 32), -1.0)
    picture[:, 2, :, 16:] = 1.0
    lines = control.edges(picture)
    assert lines.shape == (1, 3, 32, 32)
    assert set(lines.flatten().tolist()) == {0.0, 1.0}
    assert [x for x in range(32) if lines[0, 0, 5, x] > 0] == [15, 16]
    assert float(control.edges(torch.zeros(1, 3, 8, 8)).sum()) == 0.0


def test_a_controlnet_is_trained_beside_the_model_and_is_small(work: WorkDir, folder: Path) -> None:
    cpu = stages.Machine(device=torch.device("cpu"))
    before = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    stages.train_control(work.root, folder, cpu, minutes=1e-6)
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    size = sum(path.stat().st_size for path in control.control_folder(folder).iterdir())
    assert 4_000_000 < size < control.MAX_SIZE_BYTES
    trained = ControlNetModel.from_pretrained(control.control_folder(folder))
    assert trained.config.conditioning_embedding_out_channels == [16, 32, 64, 96]


def test_the_sheets_show_what_the_shipped_model_makes_of_pictures() -> None:
    painter = Painter.load(SHIPPED)
    painter.settings = FEW_STEPS
    page = proofs.image_to_image(painter)
    assert page.width == (1 + len(proofs.STRENGTHS)) * 128
    page = proofs.inpainting(painter)
    scene, filled = (np.asarray(page.crop((x, 0, x + 128, 128)), int) for x in (0, 256))
    changed = np.abs(scene - filled).mean(-1)
    assert changed[:48, :48].mean() < 8.0
    assert changed[proofs.HOLE, proofs.HOLE].mean() > 2.0 * changed[:48, :48].mean()
    assert proofs.seeds(painter).width == len(proofs.SEEDS) * 128
    assert proofs.negatives(painter).width == 4 * 128


def test_edges_steer_the_stock_pipeline(work: WorkDir) -> None:
    torch.manual_seed(0)
    painter = Painter.load(SHIPPED)
    painter.settings = FEW_STEPS
    net = control.build_control(painter.pipeline.unet)
    control.export_control(net, work.root / "untrained")
    page = proofs.edge_control(painter, work.root / "untrained")
    assert page.width == 5 * 128
    lines = np.asarray(page.crop((128, 0, 256, 128)))
    assert set(np.unique(lines)) == {0, 255}
