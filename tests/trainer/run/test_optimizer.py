from pathlib import Path

import pytest
import torch

from services.trainer.run.configuration import OptimizationSection
from services.trainer.run.optimizer import optimizer_violations
from services.trainer.run.process import execute
from services.trainer.run.reading import check_run
from tests.trainer.run.runs import NeverStops, tree


def test_eight_bit_adam_is_refused_where_it_cannot_run(
    plain_model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tree(plain_model, photos, tmp_path / "run", optimization={"optimizer": "adamw_8bit"})
    content["device"] = {"accelerator": "cpu"}
    assert execute(check_run(content), NeverStops()) == 42
    assert "optimization.optimizer: adamw_8bit needs CUDA" in capsys.readouterr().err


def test_plain_adam_runs_everywhere() -> None:
    assert not list(optimizer_violations(OptimizationSection(), torch.device("cpu")))
