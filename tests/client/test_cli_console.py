"""What others wrote does not steer the terminal of the command."""

from __future__ import annotations

import io
from pathlib import Path

import grpc
import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from limner.v1 import generation_pb2, training_pb2
from services.client.cli.console import Console
from services.client.cli.training_display import TrainingDisplay
from services.client.training_jobs import read_job
from tests.client import scripted_server as script
from tests.client.conftest import Limner
from tests.client.scripted_server import ScriptedServer

_HOSTILE = "a\x1b[31m\x1b]0;title\x07\r\x08\x9b2J\u202eb"
_SHOWN = r"a\x1b[31m\x1b]0;title"


def is_tame(text: str) -> bool:
    return all(each.isprintable() or each == "\n" for each in text)


def test_answers_of_a_server_are_shown_not_sent(
    limner: Limner, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(
        request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext
    ) -> script.Responses:
        yield script.accepted(request, notices=[generation_pb2.Notice(message=_HOSTILE)])
        script.fail(context, grpc.StatusCode.INTERNAL, _HOSTILE)

    server.generate = generate
    assert limner("generate", "dog") == 1
    said = capsys.readouterr().err
    assert said.count(_SHOWN) == 2
    assert is_tame(said)


def test_names_of_files_are_shown_not_sent(
    limner: Limner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert limner("generate", "dog", "-o", "\x1b[31m.png") == 0
    said = capsys.readouterr().out
    assert r"\x1b[31m.png  seed 7" in said
    assert is_tame(said)
    assert (tmp_path / "\x1b[31m.png").is_file()


def test_a_table_and_the_codes_of_the_console_itself_stay() -> None:
    table = Table("name", "ünï 日本語 🎨")
    table.add_row(Text(_HOSTILE), "x")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60)
    console.print(table)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(_HOSTILE)
    console.print("bold", style="bold")
    said = file.getvalue()
    assert "ünï 日本語 🎨" in said
    assert "\x1b[1mbold\x1b[0m" in said
    assert r"a\x1b[31m" in said
    assert not any(each in said for each in ("\x1b[31m", "\x1b]0", "\x9b", "\u202e", "\x07"))


def test_a_reason_to_wait_is_no_markup() -> None:
    file = io.StringIO()
    job = read_job(
        training_pb2.TrainingJob(
            id="job_1",
            state=training_pb2.TrainingJob.STATE_QUEUED,
            waiting_message="no quota [/gpu] left",
        )
    )
    with TrainingDisplay(Console(file=file, force_terminal=True, width=200), None) as display:
        display.show(job)
    assert "no quota [/gpu] left" in file.getvalue()
