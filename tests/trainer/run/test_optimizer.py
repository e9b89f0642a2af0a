import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from services.trainer.run.process import execute
from services.trainer.run.reading import check_run
from services.trainer.run.violations import RefusedError
from tests.trainer.run.runs import StopAfter, digest, run_to_end, tree

_EIGHT_BIT = {"optimization": {"optimizer": "adamw_8bit", "train_text_encoder": False}}


def test_eight_bit_adam_is_refused_where_its_package_is_missing(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RefusedError) as refused:
        check_run(tree(plain_model, photos, tmp_path / "run", **_EIGHT_BIT))
    (found,) = refused.value.violations
    assert (found.field, found.reason) == ("optimization.optimizer", "NOT_INSTALLED")


def test_eight_bit_adam_keeps_its_moments_in_bytes_and_resumes_bit_identical(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    # In full: tensors of fewer than 4,096 numbers have their moments in 32 bits, as adapters have.
    changes = {**_EIGHT_BIT, "method": "full"}
    run_to_end(tree(plain_model, photos, tmp_path / "whole", **changes))
    parts = tree(plain_model, photos, tmp_path / "parts", **changes)
    assert execute(check_run(parts), StopAfter(tmp_path / "parts", 2)) == 143
    run_to_end(parts)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    state = load_file(tmp_path / "parts" / "checkpoints" / "last.safetensors")
    assert any(tensor.dtype == torch.uint8 for tensor in state.values())
