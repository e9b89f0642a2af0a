"""Two CPU processes that train one model."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from models.recipe.parallel import launch, pick_dtype
from tests.models.two_workers import after_a_step_of_muon, learn_by_muon, share_everything


def test_two_workers_share_weights_gradients_and_numbers(tmp_path: Path) -> None:
    launch(partial(share_everything, tmp_path), torch.device("cpu"), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    _, gradient, total, shared = first
    assert gradient.tolist() == [1.5, 1.5]
    assert total.tolist() == [3.0, 3.0]
    assert shared.tolist() == [5.0, 1.0]


def test_two_workers_who_share_out_muon_learn_what_one_learns(tmp_path: Path) -> None:
    launch(partial(learn_by_muon, tmp_path), torch.device("cpu"), 2)
    alone = after_a_step_of_muon(None)
    for rank in (0, 1):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, other in zip(alone, together, strict=True):
            assert torch.allclose(one, other, atol=1e-3)


def test_the_workers_save_and_end_when_the_process_that_started_them_is_told_to(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "tests.models.two_workers", str(tmp_path)]
    with subprocess.Popen(command) as process:
        while len(list(tmp_path.glob("*.running"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=60) == 143
    assert len(list(tmp_path.glob("*.saved"))) == 2


@pytest.mark.parametrize(
    ("device", "native", "dtype"),
    [
        ("cpu", False, torch.float32),
        ("cpu", True, torch.bfloat16),
        ("cuda", False, torch.bfloat16),
    ],
)
def test_bfloat16_only_where_the_device_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, device: str, native: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert pick_dtype(torch.device(device)) == dtype
