"""What a request may ask for, and what it hears: everything that is wrong, and what is doubtful."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from limner.v1 import training_pb2
from services.trainer.token_check import token_warnings
from tests.trainer.service.harness import (
    ALICE,
    BOB,
    Stub,
    ToldBackend,
    create_request,
    serving,
    settings,
    upload,
)

State = training_pb2.TrainingJob


def picture(side: int = 64, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


async def violations(call: Any) -> dict[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(refused.value)
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    return {each.field: each.reason for each in bad.field_violations}


async def stored(stub: Stub) -> int:
    answer = await stub.ListTrainingJobs(training_pb2.ListTrainingJobsRequest(), metadata=ALICE)
    return len(answer.jobs)


def messages(*pictures: tuple[str, bytes, str | None]) -> Any:
    return iter(
        training_pb2.UploadDatasetRequest(file_name=name, data=data, caption=caption)
        for name, data, caption in pictures
    )


async def test_a_plan_is_the_job_that_would_be_and_stores_nothing(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        request = create_request(await upload(stub, photos), validate_only=True)
        planned = (await stub.CreateTrainingJob(request, metadata=ALICE)).job
        assert (planned.id, planned.model, planned.step_count) == ("", "", 4)
        assert await stored(stub) == 0
        request.validate_only = False
        created = (await stub.CreateTrainingJob(request, metadata=ALICE)).job
        assert (created.step_count, created.model) == (4, f"tiny@{created.id}")
        request.validate_only = True
        assert (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id == created.id


async def test_everything_that_is_wrong_is_told_at_once(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    configuration = (
        "optimization: {step_count: 0, warmup_step_count: 5, learning_rat: 1}\n"
        "pictures: {side: 65}\nlora: {rank: 4}\nnonsense: 1\nprior: {images: /etc}"
    )
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        request = create_request(
            await upload(stub, photos),
            base_model="unknown",
            instance_prompt="a dog",
            token="two words",
            method=training_pb2.TRAINING_METHOD_FULL,
            configuration_yaml=configuration,
            model_name="Not a name",
            webhook_url="http://127.0.0.1/",
        )
        request.idempotency_key = ""
        found = await violations(stub.CreateTrainingJob(request, metadata=ALICE))
        assert await stored(stub) == 0
    expected = {
        "idempotency_key": "OUT_OF_RANGE",
        "base_model": "UNKNOWN_MODEL",
        "model_name": "INVALID_NAME",
        "webhook_url": "BLOCKED_ADDRESS",
        "webhook_secret": "OUT_OF_RANGE",
        "configuration_yaml.nonsense": "UNKNOWN_KEY",
        "configuration_yaml.prior.images": "UNKNOWN_KEY",
        "configuration_yaml.optimization.learning_rat": "UNKNOWN_KEY",
    }
    assert found | expected == found
    assert {"token", "configuration_yaml.optimization.step_count"} <= found.keys()


async def test_settings_that_are_impossible_together_are_told(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    configuration = (
        "optimization: {step_count: 4, warmup_step_count: 5}\npictures: {side: 65}\nlora: {rank: 4}"
    )
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        request = create_request(
            await upload(stub, photos),
            instance_prompt="a dog",
            class_prompt="a sks dog",
            method=training_pb2.TRAINING_METHOD_FULL,
            configuration_yaml=configuration,
        )
        found = await violations(stub.CreateTrainingJob(request, metadata=ALICE))
    assert found == {
        "instance_prompt": "IMPOSSIBLE_COMBINATION",
        "class_prompt": "IMPOSSIBLE_COMBINATION",
        "configuration_yaml.lora": "IMPOSSIBLE_COMBINATION",
        "configuration_yaml.optimization.warmup_step_count": "IMPOSSIBLE_COMBINATION",
        "configuration_yaml.pictures.side": "NOT_A_MULTIPLE",
    }


async def test_each_picture_that_cannot_be_used_is_told_by_name(
    plain_model: Path, tmp_path: Path
) -> None:
    good = picture()
    pictures = (
        ("good.png", good, None),
        ("twin.png", good, None),
        ("notes.txt", b"no picture", None),
        ("tiny.png", picture(16), None),
        ("cut.png", picture(seed=1)[:200], None),
        ("told.png", picture(seed=2), " "),
    )
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        found = await violations(stub.UploadDataset(messages(*pictures), metadata=ALICE))
        assert found == {
            "pictures[1]": "DUPLICATE",
            "pictures[2]": "NOT_AN_IMAGE",
            "pictures[3]": "TOO_SMALL",
            "pictures[4]": "BROKEN",
            "pictures[5]": "BAD_CAPTION",
        }
        assert await violations(stub.UploadDataset(messages(), metadata=ALICE)) == {
            "pictures": "REQUIRED"
        }
    datasets = tmp_path / "datasets"
    assert [path for path in datasets.rglob("*") if path.is_file()] == []


async def test_captions_are_learnt_in_place_of_the_prompt(
    plain_model: Path, tmp_path: Path
) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path), backend) as stub:
        plain = [(f"{seed}.png", picture(seed=seed), None) for seed in range(2)]
        told = [(name, data, "a sks dog in the snow") for name, data, _ in plain]
        first = await stub.UploadDataset(messages(*plain), metadata=ALICE)
        second = await stub.UploadDataset(messages(*told), metadata=ALICE)
        assert first.dataset_id != second.dataset_id
        request = create_request(second.dataset_id)
        await stub.CreateTrainingJob(request, metadata=ALICE)
        run = await backend.runs.get()
        assert run.tree["instance"]["captions"] is True
        folder = Path(run.tree["instance"]["images"])
        assert (folder / "000.txt").read_text() == "a sks dog in the snow"


async def test_a_token_that_means_something_is_warned_about(
    emoji_like_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with serving(settings(emoji_like_model, tmp_path), ToldBackend()) as stub:
        dataset = await upload(stub, photos)
        plain = create_request(dataset)
        assert not (await stub.CreateTrainingJob(plain, metadata=ALICE)).job.warnings
        word = create_request(
            dataset, idempotency_key="two", token="apple", instance_prompt="a apple dog"
        )
        created = (await stub.CreateTrainingJob(word, metadata=ALICE)).job
        named = training_pb2.GetTrainingJobRequest(id=created.id)
        kept = (await stub.GetTrainingJob(named, metadata=ALICE)).job
    assert [(each.code, each.field) for each in kept.warnings] == [("TOKEN_IS_A_WORD", "token")]
    assert kept.warnings == created.warnings


async def test_a_base_model_whose_outcome_nothing_draws_with_is_refused_or_warned_about(
    sd3_model: Path, photos: Path, tmp_path: Path
) -> None:
    refusing = settings(sd3_model, tmp_path / "a")
    async with serving(refusing, ToldBackend()) as stub:
        request = create_request(await upload(stub, photos), validate_only=True)
        found = await violations(stub.CreateTrainingJob(request, metadata=ALICE))
        assert found == {"base_model": "NOT_SERVED"}
    allowing = settings(sd3_model, tmp_path / "b", allow_unserved_models=True)
    async with serving(allowing, ToldBackend()) as stub:
        request = create_request(await upload(stub, photos), validate_only=True)
        planned = (await stub.CreateTrainingJob(request, metadata=ALICE)).job
    (warning,) = planned.warnings
    assert (warning.code, warning.field) == ("MODEL_NOT_SERVED", "base_model")


async def test_eight_bit_moments_are_refused_where_their_package_is_missing(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    settings_yaml = "optimization: {optimizer: adamw_8bit}\npictures: {side: 64}"
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        request = create_request(await upload(stub, photos), configuration_yaml=settings_yaml)
        found = await violations(stub.CreateTrainingJob(request, metadata=ALICE))
        assert await stored(stub) == 0
    assert found == {"configuration_yaml.optimization.optimizer": "NOT_INSTALLED"}


def test_a_common_word_of_a_large_vocabulary_is_known_and_a_rare_piece_is_not(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text('{"dog</w>": 1929, "sks</w>": 48136, "do": 12}')
    assert token_warnings("Dog", tmp_path)
    assert not token_warnings("sks", tmp_path)
    assert not token_warnings("do", tmp_path)


async def test_a_name_is_for_one_model_of_an_account(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        request = create_request(await upload(stub, photos), model_name="toy")
        first = (await stub.CreateTrainingJob(request, metadata=ALICE)).job
        assert first.model == "tiny@toy"
        request.idempotency_key = "two"
        found = await violations(stub.CreateTrainingJob(request, metadata=ALICE))
        assert found == {"model_name": "ALREADY_USED"}
        theirs = create_request(await upload(stub, photos, metadata=BOB), model_name="toy")
        await stub.CreateTrainingJob(theirs, metadata=BOB)


async def test_a_watcher_gets_each_sample_once(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path), backend) as stub:
        created = await stub.CreateTrainingJob(
            create_request(await upload(stub, photos)), metadata=ALICE
        )
        run = await backend.runs.get()
        output = Path(run.tree["output"])
        data = picture()
        for step in (1, 2):
            folder = output / "samples" / f"step-{step:06d}"
            folder.mkdir(parents=True)
            (folder / "0.png").write_bytes(data)
        run.say(step=1, samples=["samples/step-000001/0.png", "samples/../../../secret"])
        request = training_pb2.WatchTrainingJobRequest(id=created.job.id, with_samples=True)
        seen: list[int] = []
        async for message in stub.WatchTrainingJob(request, metadata=ALICE):
            if message.HasField("sample"):
                assert message.sample.image == data
                seen.append(message.sample.step)
                run.say(step=2, samples=["samples/step-000002/0.png"])
            if seen == [1, 2]:
                run.finish(0)
        assert seen == [1, 2]
        request.with_samples = False
        silent = [each async for each in stub.WatchTrainingJob(request, metadata=ALICE)]
        assert not any(each.HasField("sample") for each in silent)


async def test_a_reservation_names_the_job_and_must_be_one(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    backend = ToldBackend()
    async with serving(settings(plain_model, tmp_path), backend) as stub:
        dataset = await upload(stub, photos)
        key = "x-limner-reservation"
        odd = (*ALICE, (key, "../../etc"))
        found = await violations(stub.CreateTrainingJob(create_request(dataset), metadata=odd))
        assert found == {f"metadata.{key}": "MALFORMED"}
        told = (*ALICE, (key, "0123456789abcdef0123"))
        job = (await stub.CreateTrainingJob(create_request(dataset), metadata=told)).job
        assert (job.id, job.reservation) == ("job_0123456789abcdef0123", "0123456789abcdef0123")
        (await backend.runs.get()).finish(1)
        watched = stub.WatchTrainingJob(
            training_pb2.WatchTrainingJobRequest(id=job.id), metadata=ALICE
        )
        assert [each.job.state async for each in watched][-1] == State.STATE_FAILED
        again = (*ALICE, (key, "f" * 20))
        resumed = await stub.ResumeTrainingJob(
            training_pb2.ResumeTrainingJobRequest(id=job.id), metadata=again
        )
        assert (resumed.job.attempt, resumed.job.reservation) == (2, "f" * 20)


async def test_an_upload_that_died_with_its_service_leaves_nothing(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    configured = settings(plain_model, tmp_path)
    async with serving(configured, ToldBackend()) as stub:
        dataset = await upload(stub, photos)
    (account,) = (tmp_path / "datasets").iterdir()
    (account / ".upload-cut").mkdir()
    (account / ".upload-cut" / "000.png").write_bytes(b"half")
    async with serving(configured, ToldBackend()):
        assert [folder.name for folder in account.iterdir()] == [dataset]
