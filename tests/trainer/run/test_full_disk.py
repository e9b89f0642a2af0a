"""A disk that is full in the middle of a run costs time, and neither a checkpoint nor a bit."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest
from safetensors import SafetensorError

from services.storage.disk import is_disk_full
from services.trainer.run import checkpoint, export, reporting
from services.trainer.run.process import execute
from services.trainer.run.reading import check_run
from services.trainer.run.reporting import RunReport, StepLosses
from services.trainer.run.violations import EXIT_DISK_FULL
from tests.trainer.run.runs import NeverStops, digest, run_to_end, tree

_NO_SPACE = "No space left on device"


def _full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, _NO_SPACE)


@pytest.mark.parametrize("at", ["losses", "checkpoint"])
def test_a_run_without_room_ends_with_74_and_goes_on_to_the_same_bits(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    whole = tree(plain_model, photos, tmp_path / "whole", checkpoint_interval=1)
    parts = tree(plain_model, photos, tmp_path / "parts", checkpoint_interval=1)
    losses = tmp_path / "parts" / reporting.LOSSES_FILE
    write_line, save_file = RunReport.losses, checkpoint.save_file
    saved: list[Path] = []

    def cut_off(report: RunReport, line: StepLosses) -> None:
        if line.step < 3:
            return write_line(report, line)
        with losses.open("a") as file:
            file.write('{"st')
        monkeypatch.setattr(reporting, "write_atomically", _full)
        _full()

    def save_twice(tensors: object, path: Path, header: object) -> None:
        saved.append(path)
        if len(saved) < 3:
            return save_file(tensors, path, header)
        path.write_bytes(b"half")
        raise SafetensorError(f"Error while serializing: I/O error: {_NO_SPACE} (os error 28)")

    run_to_end(whole)
    if at == "losses":
        monkeypatch.setattr(RunReport, "losses", cut_off)
    else:
        monkeypatch.setattr(checkpoint, "save_file", save_twice)
    assert execute(check_run(parts), NeverStops()) == EXIT_DISK_FULL
    monkeypatch.undo()
    assert list((tmp_path / "parts").rglob("*.partial")) == []
    run_to_end(parts)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_a_result_without_room_leaves_nothing_in_the_way(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    parts = tree(plain_model, photos, output)
    monkeypatch.setattr(export, "_write_card", _full)
    assert execute(check_run(parts), NeverStops()) == EXIT_DISK_FULL
    assert list(output.glob(".result*")) == []
    monkeypatch.undo()
    (output / ".result.1").mkdir()
    run_to_end(parts)
    assert list(output.glob("*result*")) == [output / "result"]


def test_a_full_disk_is_recognised_behind_other_errors() -> None:
    error = ValueError("not written")
    error.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert is_disk_full(error)
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(None)
