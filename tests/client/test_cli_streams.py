"""Standard streams of the command that are closed, full, or read by nobody any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.scripted_server import ScriptedServer

_MAIN = "from services.client.cli import main; main()"


def run_shell(server: ScriptedServer, folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in `folder`, in which `$limner` is the command."""
    program = folder / "program"
    program.write_text(_MAIN)
    environment = {
        **os.environ,
        "limner": f"{sys.executable} {program}",
        "LIMNER_ADDRESS": server.address,
        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize("command", ["whoami", "models --json", "--version", "generate dog -qo -"])
@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">&-", "limner: standard output: it is closed\n"),
        (">/dev/full", "No space left on device\n"),
        (">&- <&- 2>&-", ""),
        ("| true; exit ${PIPESTATUS[0]}", ""),
    ],
)
def test_output_that_goes_nowhere_is_a_failure_in_a_line_at_most(
    server: ScriptedServer, tmp_path: Path, command: str, redirection: str, said: str
) -> None:
    ended = run_shell(server, tmp_path, f"$limner {command} {redirection}")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.endswith(said)
    assert ended.stderr.count("\n") == bool(said)


def test_a_command_that_prints_nothing_needs_no_standard_streams(
    server: ScriptedServer, tmp_path: Path
) -> None:
    ended = run_shell(server, tmp_path, "$limner generate dog -qo d.png <&- >&- 2>&-")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert (tmp_path / "d.png").is_file()
