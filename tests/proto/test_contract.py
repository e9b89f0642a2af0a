"""The contract: committed stubs, lint, and the shape that clients depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.v1 import generation_pb2, model_pb2
from proto import generate, lint


def test_committed_stubs_are_what_the_sources_generate() -> None:
    assert lint.stale_stubs() == []


def test_a_changed_stub_is_reported_as_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate.generate(tmp_path)
    stub = tmp_path / "limner/v1/model_pb2.py"
    stub.write_text(stub.read_text() + "# edited\n")
    monkeypatch.setattr(lint, "GENERATED", tmp_path)
    assert lint.stale_stubs() == ["limner/v1/model_pb2.py"]


def test_buf_finds_nothing() -> None:
    assert lint.lint_messages() == ""


def test_buf_finds_an_uncommented_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "limner/v1"
    folder.mkdir(parents=True)
    (folder / "bad.proto").write_text(
        'syntax = "proto3";\npackage limner.v1;\n// A message.\nmessage Bad { int32 x = 1; }\n'
    )
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert "COMMENT_FIELD" in lint.lint_messages() or "comment" in lint.lint_messages()


def test_zero_is_a_legal_value_where_presence_matters() -> None:
    request = generation_pb2.GenerateImageRequest(seed=0, guidance_scale=0)
    assert request.HasField("seed")
    assert request.HasField("guidance_scale")
    assert not request.HasField("width")


def test_further_tasks_have_field_numbers_kept_for_them() -> None:
    numbers = {field.number for field in generation_pb2.GenerateImageRequest.DESCRIPTOR.fields}
    assert not numbers & set(range(20, 40))


def test_every_task_of_the_product_has_a_name() -> None:
    assert set(model_pb2.Task.keys()) >= {
        "TASK_TEXT_TO_IMAGE",
        "TASK_IMAGE_TO_IMAGE",
        "TASK_INPAINTING",
        "TASK_CONTROL",
        "TASK_VIDEO",
        "TASK_UPSCALE",
    }
