import shutil
import threading
from pathlib import Path

import pytest

from services.trainer.run.process import execute
from services.trainer.run.reading import check_run
from services.trainer.run.store import CheckpointStore, CheckpointUpload
from services.trainer.run.violations import RefusedError
from tests.trainer.run.runs import NeverStops, StopAfter, digest, run_to_end, tree


class SlowStore(CheckpointStore):
    """Holds each copy until it is let go, and notes what it copied."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.started, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.copied: list[bytes] = []

    def put(self, path: Path) -> None:
        self.started.release()
        assert self.go.acquire(timeout=60)
        self.copied.append(path.read_bytes())
        super().put(path)


def test_a_run_whose_folder_is_lost_goes_on_from_the_store(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    store = {"checkpoint_store": (tmp_path / "store").as_uri()}
    run_to_end(tree(plain_model, photos, tmp_path / "whole"))
    lost = tree(plain_model, photos, tmp_path / "lost", **store)
    assert execute(check_run(lost), StopAfter(tmp_path / "lost", 2)) == 143
    shutil.rmtree(tmp_path / "lost")
    run_to_end(lost)
    assert digest(tmp_path / "lost") == digest(tmp_path / "whole")
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {"last.safetensors", "best.safetensors", "losses.jsonl"}
    kept = (tmp_path / "store" / "last.safetensors").read_bytes()
    assert kept == (tmp_path / "lost" / "checkpoints" / "last.safetensors").read_bytes()


def test_training_does_not_wait_and_only_the_newest_waits(tmp_path: Path) -> None:
    store = SlowStore((tmp_path / "store").as_uri())
    upload = CheckpointUpload(store)
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"0")
    upload.submit(path)
    assert store.started.acquire(timeout=60)
    for content in (b"1", b"2", b"3"):
        path.write_bytes(content)
        upload.submit(path)
    for _ in range(4):
        store.go.release()
    upload.finish()
    assert len(store.copied) == 2
    assert (tmp_path / "store" / path.name).read_bytes() == b"3"


def test_a_store_that_takes_nothing_fails_the_run_in_the_end_not_before(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "store").write_text("a file where a folder should be")
    store = {"checkpoint_store": (tmp_path / "store").as_uri()}
    content = tree(plain_model, photos, tmp_path / "run", **store)
    assert execute(check_run(content), NeverStops()) == 1
    assert len((tmp_path / "run" / "losses.jsonl").read_text().splitlines()) == 4
    assert '"UNUSABLE_FILES"' in (tmp_path / "run" / "status.json").read_text()


def test_a_url_that_nothing_opens_is_refused() -> None:
    with pytest.raises(RefusedError, match="checkpoint_store"):
        CheckpointStore("nowhere://folder")
