"""Trainings of the SDK and of the command, against a trainer whose answers are written down."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limner.v1 import training_pb2
from services.client import (
    ArgumentError,
    AsyncClient,
    Client,
    InvalidRequest,
    RetryPolicy,
    TrainingJob,
    TrainingSample,
)
from services.client.cli.app import run
from services.client.upload import Picture, Upload
from tests.client.scripted_server import PNG
from tests.client.scripted_trainer import ScriptedTrainer, State, drew, is_at, is_away, job, says

_MAIN = "from services.client.cli import main; main()"
Limner = Callable[..., int]


@pytest.fixture
def trainer() -> Iterator[ScriptedTrainer]:
    trainer = ScriptedTrainer()
    yield trainer
    trainer.stop()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.JPG", "a.png", "notes.txt"):
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


@pytest.fixture
def limner(trainer: ScriptedTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Limner:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMNER_ADDRESS", trainer.address)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run(list(arguments))


def test_an_upload_is_cut_into_chunks_and_names_each_picture_once() -> None:
    data = bytes(600_000)
    messages = list(Upload([("a.png", data), ("empty.png", b"")]))
    assert [message.HasField("file_name") for message in messages] == [True, False, False, True]
    assert b"".join(message.data for message in messages[:3]) == data


@pytest.mark.parametrize(
    ("picture", "complaint"),
    [
        ("gone.png", "No such file or directory: 'gone.png'"),
        (("\udcff.png", b""), r"pictures: the name '\\udcff.png' cannot be written in UTF-8"),
        ("photos/a.png", "pictures: photos/a.txt is no UTF-8"),
    ],
)
def test_both_clients_tell_which_picture_cannot_be_sent(
    trainer: ScriptedTrainer,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    picture: Picture,
    complaint: str,
) -> None:
    monkeypatch.chdir(photos.parent)
    (photos / "a.txt").write_bytes(b"\xff")

    async def with_await() -> None:
        async with AsyncClient(trainer.address) as client:
            await client.trainings.upload([picture], captions=True)

    with (
        Client(trainer.address) as client,
        pytest.raises((OSError, ArgumentError), match=complaint),
    ):
        client.trainings.upload([picture], captions=True)
    with pytest.raises((OSError, ArgumentError), match=complaint):
        asyncio.run(with_await())


def test_a_picture_that_cannot_be_sent_is_a_line(
    trainer: ScriptedTrainer, photos: Path, limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "folder.png").mkdir()
    (photos / "a.txt").write_bytes(b"\xff")
    assert limner("train", str(photos), "--dry-run") == 0
    assert limner("train", str(photos), "--dry-run", "--captions") == 2
    assert "Invalid value for PHOTOS: " in capsys.readouterr().err


def test_a_watch_outlives_its_server_and_repeats_nothing(trainer: ScriptedTrainer) -> None:
    trainer.watches = [
        says(is_at(job(step=1)), drew(1), then=is_away),
        says(drew(1), is_at(job(step=1)), then=is_away),
        says(drew(3), is_at(job(State.STATE_SUCCEEDED, 4))),
    ]
    policy = RetryPolicy(max_attempts=2, initial_delay_s=0.01)
    with Client(trainer.address, retry=policy) as client:
        events = list(client.trainings.watch("job_1", with_samples=True))
    seen = [(type(event), event.step) for event in events]
    assert seen == [(TrainingJob, 1), (TrainingSample, 1), (TrainingSample, 3), (TrainingJob, 4)]


def test_both_clients_have_the_same_calls(trainer: ScriptedTrainer, photos: Path) -> None:
    paths = sorted(photos.glob("*.[pJ]*"))
    trainer.watches = [says(is_at(job(State.STATE_SUCCEEDED, 4)))] * 2
    asked: dict[str, Any] = {"base_model": "emoji", "instance_prompt": "a sks toy"}

    def one_by_one() -> list[Any]:
        with Client(trainer.address) as client:
            trainings = client.trainings
            dataset = trainings.upload(paths)
            return [
                dataset,
                trainings.create(dataset.id, method="full", idempotency_key="k", **asked),
                trainings.plan(dataset.id, **asked),
                trainings.get("job_1"),
                list(trainings.list()),
                list(trainings.watch("job_1")),
                trainings.cancel("job_1"),
                trainings.resume("job_1"),
                trainings.delete("job_1"),
            ]

    async def with_await() -> list[Any]:
        async with AsyncClient(trainer.address) as client:
            trainings = client.trainings
            dataset = await trainings.upload(paths)
            return [
                dataset,
                await trainings.create(dataset.id, method="full", idempotency_key="k", **asked),
                await trainings.plan(dataset.id, **asked),
                await trainings.get("job_1"),
                [each async for each in trainings.list()],
                [each async for each in trainings.watch("job_1")],
                await trainings.cancel("job_1"),
                await trainings.resume("job_1"),
                await trainings.delete("job_1"),  # type: ignore[func-returns-value]
            ]

    plain = one_by_one()
    assert asyncio.run(with_await()) == plain
    assert [each.id for each in plain[4]] == ["job_1", "job_2"]
    assert (plain[1].method, plain[2].id) == ("lora", "")
    assert trainer.created[0] == trainer.created[2]
    assert trainer.created[0].method == training_pb2.TRAINING_METHOD_FULL
    assert trainer.called == ["cancel job_1", "resume job_1", "delete job_1"] * 2


def test_an_unknown_method_is_refused_before_anything_is_sent(trainer: ScriptedTrainer) -> None:
    with Client(trainer.address) as client, pytest.raises(ValueError, match="one of lora, full"):
        client.trainings.create("d", base_model="emoji", instance_prompt="a", method="magic")
    assert not trainer.created


def test_train_uploads_asks_watches_and_keeps_samples(
    trainer: ScriptedTrainer,
    photos: Path,
    limner: Limner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer.warnings = [
        training_pb2.TrainingWarning(code="TOKEN_IS_A_WORD", message="it means a dog")
    ]
    trainer.watches = [
        says(is_at(job(step=2)), drew(2), is_at(job(State.STATE_SUCCEEDED, 4))),
    ]
    assert limner("train", str(photos), "--class", "toy", "--steps", "4") == 0
    assert set(trainer.uploaded) == {"a.png", "b.JPG"}
    (asked,) = trainer.created
    assert asked.base_model == "emoji"
    assert asked.instance_prompt == "a photo of sks toy"
    assert asked.class_prompt == "a photo of a toy"
    assert asked.configuration_yaml == "optimization:\n  step_count: 4\n"
    assert (tmp_path / "job_1-samples" / "step-000002-0.png").read_bytes() == PNG
    told = capsys.readouterr().err
    assert "warning: it means a dog" in told
    assert "loss 0.5000  prior 0.2500  rate 1.0e-04" in told
    assert 'limner generate "a photo of sks toy" --model emoji@job_1' in told


def test_options_win_over_the_file_and_the_file_over_defaults(
    trainer: ScriptedTrainer, photos: Path, limner: Limner, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(
        "token: abc\nclass: apple\nmethod: full\nlora: {rank: 4}\nnonsense: 1\n"
        "optimization: {step_count: 9, seed: 3}\n"
    )
    arguments = ("--config", "c.yaml", "--token", "xyz", "--steps", "5", "--detach")
    assert limner("train", str(photos), *arguments) == 0
    (asked,) = trainer.created
    assert (asked.token, asked.instance_prompt) == ("xyz", "a photo of xyz apple")
    assert asked.class_prompt == "a photo of an apple"
    assert asked.method == training_pb2.TRAINING_METHOD_FULL
    assert "nonsense: 1" in asked.configuration_yaml
    assert "step_count: 5" in asked.configuration_yaml
    assert "seed: 3" in asked.configuration_yaml


def test_everything_that_is_wrong_is_told_at_once(
    trainer: ScriptedTrainer, photos: Path, limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.upload_faults = [("pictures[0]", "a.png: is no picture")]
    trainer.create_faults = [
        ("dataset_id", "no such dataset"),
        ("base_model", "no model of this name"),
        ("configuration_yaml.nonsense", "may be set: lora"),
        ("configuration_yaml.optimization.step_count", "must be at least 1"),
        ("idempotency_key", "is too long"),
    ]
    arguments = (str(photos), "--base", "other", "--steps", "0")
    assert limner("train", *arguments) == 1
    told = capsys.readouterr().err
    for part in (
        "PHOTOS: a.png",
        "--base: no model",
        "--config (nonsense): may",
        "--steps: must be",
        "--key: is too long",
    ):
        assert f"\n  {part}" in told
    assert "no such dataset" not in told
    assert [request.validate_only for request in trainer.created] == [True]


def test_a_dry_run_trains_nothing(
    trainer: ScriptedTrainer, photos: Path, limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert limner("train", str(photos), "--dry-run") == 0
    assert [request.validate_only for request in trainer.created] == [True]
    assert "everything is in order: 4 steps of emoji" in capsys.readouterr().out


def test_several_bases_want_a_name(
    trainer: ScriptedTrainer, photos: Path, limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.bases = ["emoji", "sd15"]
    assert limner("train", str(photos)) == 2
    assert "name one of emoji, sd15" in capsys.readouterr().err
    assert not trainer.uploaded


def test_a_folder_without_pictures_is_a_usage_error(
    limner: Limner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert limner("train", "empty") == 2
    assert "there are no pictures" in capsys.readouterr().err


def test_a_failed_training_tells_why_and_ends_with_1(
    trainer: ScriptedTrainer, photos: Path, limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = job(
        State.STATE_FAILED,
        failure_reason=training_pb2.TRAINING_FAILURE_REASON_OUT_OF_MEMORY,
        failure_message="it needs 12 GB",
    )
    trainer.watches = [says(is_at(failed))]
    assert limner("train", str(photos)) == 1
    told = capsys.readouterr().err
    assert "job_1 failed (out_of_memory): it needs 12 GB" in told
    assert "limner trainings resume job_1" in told


def test_ctrl_c_without_a_terminal_detaches_and_says_how_to_come_back(
    trainer: ScriptedTrainer, photos: Path, tmp_path: Path
) -> None:
    watched = threading.Event()

    def stay(context: Any) -> None:
        watched.set()
        while context.is_active():
            time.sleep(0.05)

    trainer.watches = [says(is_at(job()), then=stay)]
    command = subprocess.Popen(
        [sys.executable, "-c", _MAIN, "train", str(photos)],
        cwd=tmp_path,
        env={**os.environ, "LIMNER_ADDRESS": trainer.address},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watched.wait(180)
    assert command.stderr is not None
    assert command.stderr.readline().startswith("training: 2 of 4 steps")
    command.send_signal(signal.SIGINT)
    _, told = command.communicate(timeout=180)
    assert command.returncode == 130
    assert "limner trainings watch job_1" in told
    assert not trainer.called


def test_trainings_lists_shows_and_acts(
    trainer: ScriptedTrainer, limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.watches = [says(is_at(job(State.STATE_SUCCEEDED, 4)))] * 2
    assert limner("trainings", "list", "--json") == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == ["job_1", "job_2"]
    assert limner("trainings", "list", "--limit", "1") == 0
    listed = capsys.readouterr().out
    assert "job_1" in listed
    assert "job_2" not in listed
    assert limner("trainings", "show", "job_7") == 0
    assert "job_7" in capsys.readouterr().out
    assert limner("trainings", "watch", "job_1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["progress"]["eta_s"] == 1.5
    for verb in ("watch", "cancel", "resume", "delete"):
        assert limner("trainings", verb, "job_1") == 0
    assert trainer.called == ["cancel job_1", "resume job_1", "delete job_1"]


def test_violations_carry_their_fields(trainer: ScriptedTrainer) -> None:
    trainer.create_faults = [("token", "must be a word")]
    with Client(trainer.address) as client, pytest.raises(InvalidRequest) as refused:
        client.trainings.create("d", base_model="emoji", instance_prompt="a")
    assert [each.field for each in refused.value.violations] == ["token"]
