"""The command against a real server: files, messages and exit codes as a user meets them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import grpc
import pytest
import typer
from google.rpc import error_details_pb2

from limner.v1 import generation_pb2, model_pb2
from services.client.cli.failure import describe_os_error
from services.client.cli.plugins import CommandGroup, load
from services.client.files import write_whole
from tests.client import scripted_server as script
from tests.client.conftest import Limner
from tests.client.scripted_server import PNG, ScriptedServer

_MAIN = "from services.client.cli import main; main()"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_generate_writes_the_picture_and_says_how_to_repeat_it(
    limner: Limner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "apple.png").write_bytes(b"an older picture")
    assert limner("generate", "a red apple", "-o", "apple.png") == 0
    assert (tmp_path / "apple.png").read_bytes() == PNG
    assert files(tmp_path) == {"apple.png"}
    printed = capsys.readouterr()
    assert "apple.png  seed 7" in printed.out
    assert (
        "--model scripted --size 128x64 --steps 4 --guidance 5 --sampler dpmpp_2m --seed 7"
    ) in printed.out
    assert "drawing: 4 of 4 steps" in printed.err


def test_options_arrive_as_they_were_typed(limner: Limner, server: ScriptedServer) -> None:
    line = "generate dog -o d.webp --model m --negative cat --size 64x32 --steps 3 --guidance 0 "
    line += "--seed 0 --sampler heun --samples 2 --preview p.png --preview-every 2"
    assert limner(*line.split()) == 0
    (request,) = server.requests
    assert (request.prompt, request.model, request.negative_prompt) == ("dog", "m", "cat")
    assert (request.width, request.height, request.step_count) == (64, 32, 3)
    assert (request.guidance_scale, request.seed, request.sample_count) == (0.0, 0, 2)
    assert request.HasField("seed")
    assert request.sampler == generation_pb2.SAMPLER_HEUN
    assert request.output_format == 3
    assert request.preview_interval == 2


def test_several_samples_become_numbered_files_and_previews(limner: Limner, tmp_path: Path) -> None:
    assert limner(*["generate", "dog", "-o", "d.png", "-n", "2", "--preview", "now.png"]) == 0
    assert files(tmp_path) == {"d-0.png", "d-1.png", "now-0.png", "now-1.png"}


def test_without_a_name_the_file_is_named_after_prompt_and_seed(
    limner: Limner, tmp_path: Path
) -> None:
    assert limner("generate", "A red/apple!") == 0
    assert files(tmp_path) == {"a-red-apple-7.png"}


def test_a_dash_writes_only_the_picture_to_standard_output(
    limner: Limner, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert limner("generate", "dog", "-o", "-", "--format", "png") == 0
    assert capfdbinary.readouterr().out == PNG


def test_json_holds_every_resolved_value(
    limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert limner("generate", "dog", "-o", "d.png", "--json", "--quiet") == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["seed"], report["sampler"], report["model_revision"]) == (7, "dpmpp_2m", "r1")
    assert report["images"][0]["path"] == "d.png"
    assert report["images"][0]["size_bytes"] == len(PNG)
    assert printed.err == ""


def test_quiet_prints_nothing(limner: Limner, capsys: pytest.CaptureFixture[str]) -> None:
    assert limner("generate", "dog", "-o", "d.png", "-q") == 0
    assert capsys.readouterr() == ("", "")


def test_notices_are_shown(
    limner: Limner, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(
        request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext
    ) -> script.Responses:
        notice = generation_pb2.Notice(code="UNKNOWN_WORDS", message="[zorp] is not known")
        yield script.accepted(request, notices=[notice])
        yield from script.image(0)

    server.generate = generate
    assert limner("generate", "a zorp", "-o", "d.png") == 0
    assert "note: [zorp] is not known" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("-o nowhere/d.png", "there is no folder nowhere"),
        ("-o folder.png", "folder.png is a folder"),
        ("-o .", ". is a folder"),
        ("-o d.gif", "d.gif does not end in .png, .jpg, .jpeg, .webp"),
        ("-o d.png --format webp", "webp does not go with the name d.png"),
        ("--format tiff", "one of png, jpeg, webp"),
        ("-o - -n 2", "standard output takes one picture"),
        ("-o - --json", "both want standard output"),
        ("--size 12by12", "is not like 128x128"),
        ("--size 12x12 --width 3", "give --size, or --width and --height"),
        ("--sampler plms", "unknown sampler 'plms'"),
        ("--preview nowhere/p.png", "there is no folder nowhere"),
        ("--preview p.jpg", "previews are PNG"),
        ("--preview-every 3", "needs --preview FILE"),
        ("--key-file nowhere", "cannot read the key"),
        ("--key-file empty", "Invalid value for --key-file: cannot use the key: the file empty is"),
        ("--key-file binary", "Invalid value for --key-file: cannot use the key: 'utf-8' codec"),
        ("--width 99999999999", "width: "),
    ],
)
def test_wrong_usage_is_found_before_the_request_is_sent(
    limner: Limner,
    server: ScriptedServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    complaint: str,
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff")
    assert limner("generate", "dog", *line.split()) == 2
    assert complaint in capsys.readouterr().err
    assert server.call_count == 0


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("generate \udcff -o d.png", 2),
        ("upscale dog.png --model \udcff", 2),
        ("usage --month \udcff", 1),
        ("accounts create \udcff", 1),
    ],
)
def test_an_argument_that_is_no_utf_8_is_said_in_a_line(
    limner: Limner, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, status: int
) -> None:
    (tmp_path / "dog.png").write_bytes(PNG)
    assert limner(*line.split()) == status
    assert r"'\udcff' cannot be written in UTF-8" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_is_not_writable_is_found_first(limner: Limner, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert limner("generate", "dog", "-o", "d.png") == 2


def test_violations_are_listed_by_option(
    limner: Limner, server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(request: object, context: grpc.ServicerContext) -> script.Responses:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field="step_count", description="is 0, must be 1 to 150")
        bad.field_violations.add(field="prompt", description="must not be empty")
        script.fail(context, grpc.StatusCode.INVALID_ARGUMENT, "bad", bad)
        yield from ()

    server.generate = generate
    assert limner("generate", "", "-o", "d.png") == 1
    assert capsys.readouterr().err.splitlines() == [
        "limner: the request is not valid",
        "  --steps: is 0, must be 1 to 150",
        "  PROMPT: must not be empty",
    ]
    assert files(tmp_path) == set()


def test_a_failure_on_the_way_leaves_no_file(
    limner: Limner, server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(
        request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext
    ) -> script.Responses:
        yield script.accepted(request)
        yield script.chunk(0, PNG[:100], first=True, last=False)
        info = script.error_info("BACKEND_LOST")
        script.fail(context, grpc.StatusCode.UNAVAILABLE, "the backend was lost", info)

    server.generate = generate
    assert limner("generate", "dog", "-o", "d.png") == 1
    assert capsys.readouterr().err == "limner: the backend was lost\n"
    assert files(tmp_path) == set()


def test_an_unreachable_server_is_said_plainly(
    limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert limner("whoami", "--address", "127.0.0.1:1") == 1
    assert "no server could be reached" in capsys.readouterr().err


def test_the_key_of_limner_up_is_used_on_this_machine_only(
    limner: Limner, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "limner-data").mkdir()
    (tmp_path / "limner-data" / "api-key").write_text("local\n")
    (tmp_path / "other").write_text("other\n")
    assert limner("models") == 0
    assert limner("models", "--key-file", "other") == 0
    assert limner("models", "--address", server.address.replace("127.0.0.1", "0.0.0.0")) == 0
    monkeypatch.setenv("LIMNER_API_KEY", "environment")
    assert limner("models") == 0
    sent = [metadata.get("authorization") for metadata in server.metadata]
    assert sent == ["Bearer local", "Bearer other", None, "Bearer environment"]


def test_models_prints_limits_defaults_and_words(
    limner: Limner, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.models.models.add(
        name="emoji",
        samplers=[generation_pb2.SAMPLER_DDIM],
        defaults=model_pb2.ImageDefaults(
            width=128, height=128, step_count=20, sampler=generation_pb2.SAMPLER_DDIM
        ),
        vocabulary=model_pb2.Vocabulary(concepts=["red apple", "dog face"]),
    )
    assert limner("models") == 0
    table = capsys.readouterr().out
    assert all(part in table for part in ("emoji", "128×128*", "20*", "ddim*"))
    assert limner("models", "--words") == 0
    assert "concepts (2): red apple, dog face" in capsys.readouterr().out
    assert limner("models", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["vocabulary"]["concepts"][1] == "dog face"


def test_whoami_names_account_and_key(
    limner: Limner, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.account.account = "studio"
    server.account.key_id = "k1"
    server.account.key_create_time.FromJsonString("2026-01-02T03:04:05Z")
    assert limner("whoami") == 0
    assert capsys.readouterr().out == "account studio, key k1, created 2026-01-02 03:04 UTC\n"
    assert limner("whoami", "--json") == 0
    assert json.loads(capsys.readouterr().out)["key_create_time"] == "2026-01-02T03:04:05+00:00"


def test_ctrl_c_cancels_the_call_and_exits_130(server: ScriptedServer, tmp_path: Path) -> None:
    drawing = threading.Event()

    def generate(
        request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext
    ) -> script.Responses:
        yield script.accepted(request)
        drawing.set()
        server.ended.wait(180)

    server.generate = generate
    command = [sys.executable, "-c", _MAIN, "generate", "dog", "-o", "d.png"]
    environment = {**os.environ, "LIMNER_ADDRESS": server.address, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert drawing.wait(180)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 130
    assert server.ended.wait(60)
    assert (out, b"Traceback" in err) == (b"", False)
    assert files(tmp_path) == set()


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "d.png"
    write_whole(target, b"old")
    (tmp_path / "link.png").symlink_to(target)
    write_whole(tmp_path / "link.png", b"new")
    assert target.read_bytes() == b"new"
    monkeypatch.setattr(Path, "replace", _refuse)
    with pytest.raises(OSError, match="refused"):
        write_whole(target, b"newer")
    assert target.read_bytes() == b"new"
    assert files(tmp_path) == {"d.png", "link.png"}


def test_a_file_that_cannot_be_written_is_named_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as raised:
        write_whole("gone/d.png", b"data")
    assert (raised.value.filename, raised.value.strerror) == (
        "gone/d.png",
        "No such file or directory",
    )
    (tmp_path / "d.png").mkdir()
    with pytest.raises(IsADirectoryError) as into_folder:
        write_whole("d.png", b"data")
    assert into_folder.value.filename == "d.png"
    assert files(tmp_path) == {"d.png"}


def _refuse(self: Path, target: Path) -> Path:
    raise OSError("refused")


class _Plugins(CommandGroup):
    installed: tuple[EntryPoint, ...] = ()

    def entries(self) -> tuple[EntryPoint, ...]:
        return self.installed


def test_commands_of_other_packages_are_found_by_entry_point(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greet(name: str) -> None:
        typer.echo(f"hello {name}")

    module = ModuleType("limner_test_plugin")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(module, "greet", greet, raising=False)
    monkeypatch.setattr(
        _Plugins,
        "installed",
        (
            EntryPoint(name="greet", value="limner_test_plugin:greet", group="limner.commands"),
            EntryPoint(name="up", value="absent.local.cli:up", group="limner.commands"),
        ),
    )
    app = typer.Typer(cls=_Plugins)
    app.callback()(lambda: None)
    with pytest.raises(SystemExit) as ended:
        app(["greet", "you"])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        app(["up", "--port", "3"])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == "hello you\n"
    assert "pip install 'limner[local]'" in printed.err
    with pytest.raises(SystemExit) as ended:
        app(["--help"])
    assert ended.value.code == 0
    assert "Not installed" in capsys.readouterr().out


def test_a_broken_command_of_our_own_is_not_hidden() -> None:
    broken = EntryPoint(name="x", value="services.nowhere.cli:app", group="limner.commands")
    with pytest.raises(ModuleNotFoundError):
        load(broken)


def test_a_picture_that_the_disk_cannot_hold_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "apple.png"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(OSError, match="File too large") as failure:
            write_whole(path, b"x" * 2**21)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert describe_os_error(failure.value) == f"limner: {path}: File too large"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
