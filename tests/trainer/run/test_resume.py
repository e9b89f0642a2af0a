from pathlib import Path

import pytest

from services.trainer.run.process import execute
from services.trainer.run.reading import check_run
from tests.trainer.run.runs import StopAfter, digest, run_to_end, tree

_EVERYTHING = {
    "optimization": {"ema_decay": 0.9, "min_snr_gamma": 5.0, "schedule": "cosine"},
}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_and_resumed_run_is_bit_identical(
    plain_model: Path, photos: Path, tmp_path: Path, method: str, stop_after: int
) -> None:
    whole = tree(plain_model, photos, tmp_path / "whole", method=method, **_EVERYTHING)
    parts = tree(plain_model, photos, tmp_path / "parts", method=method, **_EVERYTHING)

    run_to_end(whole)
    assert execute(check_run(parts), StopAfter(tmp_path / "parts", stop_after)) == 143
    stopped = digest(tmp_path / "parts")
    run_to_end(parts)

    assert stopped != digest(tmp_path / "whole")
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
