"""`limner weights list`: the shipped upscalers, wherever it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.upscale.cli import app


def test_the_shipped_upscalers_are_listed_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    for name in ("realesr-animevideov3", "realesr-general-x4v3", "realesrgan-x4plus"):
        assert name in result.output


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["list", "--folder", str(tmp_path / "nowhere")])
    assert result.exit_code != 0
    assert "nowhere" in result.output.replace("\n", "")
