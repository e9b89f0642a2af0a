"""The catalogue: entries appear and go as a whole, each account's apart."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from services.storage.catalog import CatalogEntry, FolderCatalog, base_name

ENTRY = CatalogEntry(
    name="emoji@toy",
    job_id="job_1",
    account="acme",
    base_model="emoji",
    base_revision="0" * 16,
    revision="",
    method="lora",
    token="sks",
    instance_prompt="a sks toy",
    class_prompt="a toy",
    dataset_digest="1" * 64,
    configuration={"optimization": {"step_count": 4}},
)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    for name, text in {
        "model/unet/weights.safetensors": "weights",
        "model/model_index.json": "{}",
        "samples/0.png": "picture",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_an_entry_has_everything_that_was_published(result: Path, tmp_path: Path) -> None:
    catalog = FolderCatalog(tmp_path / "catalog")
    published = catalog.publish(ENTRY, result)
    assert catalog.entries("acme") == [published]
    assert replace(published, revision="", samples=(), files={}, size_bytes=0, created="") == ENTRY
    assert published.samples == ("samples/0.png",)
    assert published.size_bytes == len("weights") + len("{}")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert published.files["model/unet/weights.safetensors"] == digest
    assert len(published.revision) == 16
    folder = catalog.model_folder(published)
    assert folder is not None
    assert (folder / "unet" / "weights.safetensors").read_text() == "weights"


def test_an_entry_is_on_the_disk_before_it_is_there(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    sync, move = os.fsync, os.rename

    def note(descriptor: int) -> None:
        sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def check_and_move(source: Path, target: Path) -> None:
        unsynced = [
            path for path in (source, *source.rglob("*")) if path.stat().st_ino not in synced
        ]
        assert not unsynced
        synced.clear()
        move(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", check_and_move)
    root = tmp_path / "catalog"
    published = FolderCatalog(root).publish(ENTRY, result)
    assert len(published.files) == 3
    account = next(root.iterdir())
    assert synced == {account.stat().st_ino, root.stat().st_ino}


def test_the_revision_is_that_of_the_model_alone(result: Path, tmp_path: Path) -> None:
    catalog = FolderCatalog(tmp_path / "catalog")
    first = catalog.publish(ENTRY, result)
    (result / "samples" / "0.png").write_text("another picture")
    second = catalog.publish(replace(ENTRY, job_id="job_2", name="emoji@two"), result)
    (result / "model" / "model_index.json").unlink()
    (result / "model" / "model_index.json").write_text("{ }")
    third = catalog.publish(replace(ENTRY, job_id="job_3", name="emoji@three"), result)
    assert first.revision == second.revision != third.revision


def test_publishing_again_changes_nothing(result: Path, tmp_path: Path) -> None:
    catalog = FolderCatalog(tmp_path / "catalog")
    first = catalog.publish(ENTRY, result)
    assert catalog.publish(replace(ENTRY, token="other"), result) == first


def test_what_a_crash_left_is_replaced(result: Path, tmp_path: Path) -> None:
    catalog = FolderCatalog(tmp_path / "catalog")
    published = catalog.publish(ENTRY, result)
    folder = catalog.model_folder(published)
    assert folder is not None
    (folder.parent / "entry.json").unlink()
    assert catalog.entries("acme") == []
    assert catalog.model_folder(published) is None
    catalog.publish(ENTRY, result)
    assert [each.name for each in catalog.entries("acme")] == ["emoji@toy"]


@pytest.mark.parametrize("removes", [False, True])
def test_what_a_killed_process_left_goes_with_the_next_that_has_the_job(
    result: Path, tmp_path: Path, removes: bool
) -> None:
    root = tmp_path / "catalog"
    catalog = FolderCatalog(root)
    catalog.publish(replace(ENTRY, job_id="job_2"), result)
    (folder,) = root.iterdir()
    (folder / ".job_1.0123abcd" / "model").mkdir(parents=True)
    (folder / ".job_2.0123abcd").mkdir()
    if removes:
        catalog.remove("acme", "job_1")
    else:
        catalog.publish(ENTRY, result)
    kept = {".job_2.0123abcd", "job_2"} | (set() if removes else {"job_1"})
    assert {path.name for path in folder.iterdir()} == kept


def test_two_removals_at_once_do_not_disturb_each_other(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = FolderCatalog(tmp_path / "catalog")
    catalog.publish(ENTRY, result)
    replace_file = os.replace

    def replaced_beside_another(source: Path, target: Path) -> None:
        replace_file(source, target)
        monkeypatch.undo()
        catalog.remove("acme", "job_1")  # sweeps what the first has only renamed

    monkeypatch.setattr(os, "replace", replaced_beside_another)
    catalog.remove("acme", "job_1")
    assert [path for path in (tmp_path / "catalog").rglob("*") if path.is_file()] == []


def test_accounts_do_not_see_each_other(result: Path, tmp_path: Path) -> None:
    catalog = FolderCatalog(tmp_path / "catalog")
    catalog.publish(ENTRY, result)
    catalog.publish(replace(ENTRY, account="../acme"), result)
    assert [each.account for each in catalog.entries("acme")] == ["acme"]
    assert [each.account for each in catalog.entries("../acme")] == ["../acme"]
    assert catalog.entries("nobody") == []


def test_removing_takes_everything_and_may_be_repeated(result: Path, tmp_path: Path) -> None:
    root = tmp_path / "catalog"
    catalog = FolderCatalog(root)
    published = catalog.publish(ENTRY, result)
    catalog.remove("acme", "job_1")
    catalog.remove("acme", "job_1")
    assert catalog.entries("acme") == []
    assert catalog.model_folder(published) is None
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert (result / "model" / "unet" / "weights.safetensors").is_file()


def test_a_result_without_a_model_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "result"
    empty.mkdir()
    root = tmp_path / "catalog"
    with pytest.raises(FileNotFoundError):
        FolderCatalog(root).publish(ENTRY, empty)
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert FolderCatalog(root).entries("acme") == []


def test_a_trained_model_counts_as_its_base() -> None:
    assert base_name("emoji@toy") == base_name("emoji") == "emoji"
