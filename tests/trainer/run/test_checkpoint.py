"""Checkpoint files that no run can go on from are refused with the file's name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from services.trainer.run.checkpoint import Identity, Position, read_position
from services.trainer.run.violations import RefusedError

_IDENTITY = Identity(fingerprint="f", world_size=1, versions={"torch": "2"})
_WHOLE = {"identity": asdict(_IDENTITY), "position": asdict(Position(step=3))}


def _write(path: Path, header: Any) -> Path:
    save_file({"weights/a": torch.zeros(4)}, path, {"limner": json.dumps(header)})
    return path


def test_a_whole_one_tells_how_far_the_run_is(tmp_path: Path) -> None:
    path = _write(tmp_path / "last.safetensors", _WHOLE)
    assert read_position(path, _IDENTITY) == Position(step=3)


@pytest.mark.parametrize(
    "header",
    [
        {},
        [],
        {"identity": None, "position": {}},
        {"identity": asdict(_IDENTITY)},
        _WHOLE | {"position": {"steps": 3}},
    ],
)
def test_a_header_of_something_else_is_refused(tmp_path: Path, header: Any) -> None:
    path = _write(tmp_path / "last.safetensors", header)
    with pytest.raises(RefusedError, match=str(path)) as caught:
        read_position(path, _IDENTITY)
    assert [fault.reason for fault in caught.value.violations] == ["BAD_CHECKPOINT"]


@pytest.mark.parametrize("size", [0, 5, 40])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, size: int) -> None:
    path = _write(tmp_path / "last.safetensors", _WHOLE)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RefusedError, match=str(path)) as caught:
        read_position(path, _IDENTITY)
    assert [fault.reason for fault in caught.value.violations] == ["BAD_CHECKPOINT"]
