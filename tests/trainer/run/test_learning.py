import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from services.trainer.run.process import execute
from services.trainer.run.reading import check_run
from tests.trainer.run.runs import NeverStops, digest, run_to_end, tree


def _losses(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "losses.jsonl").read_text().splitlines()]


def test_both_losses_are_logged_and_add_up(plain_model: Path, photos: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "prior": {"loss_weight": 0.5},
        "tracking": {"tensorboard": True},
        "optimization": {"schedule": "linear", "warmup_step_count": 2},
    }
    run_to_end(tree(plain_model, photos, tmp_path / "run", **changes))
    lines = _losses(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        total = line["instance_loss"] + 0.5 * line["prior_loss"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [event.value for event in events.Scalars("loss/prior")]
    assert logged == pytest.approx([line["prior_loss"] for line in lines])
    assert events.Tags()["images"] == ["samples/0"]


def test_weights_and_biases_is_told_offline(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    changes = {"tracking": {"wandb_project": "limner"}, "optimization": {"step_count": 1}}
    run_to_end(tree(plain_model, photos, tmp_path / "run", **changes))
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"loss/prior" in log.read_bytes()


def test_caches_change_nothing(plain_model: Path, photos: Path, tmp_path: Path) -> None:
    frozen = {"train_text_encoder": False}
    for name, cached in (("cached", True), ("uncached", False)):
        changes = {
            "pictures": {"cache_latents": cached},
            "optimization": {**frozen, "cache_text_embeddings": cached},
        }
        run_to_end(tree(plain_model, photos, tmp_path / name, **changes))
    cached_losses, losses = _losses(tmp_path / "cached"), _losses(tmp_path / "uncached")
    for one, other in zip(cached_losses, losses, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_gradient_checkpointing_changes_no_result(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    for name, on in (("on", True), ("off", False)):
        changes = {"optimization": {"gradient_checkpointing": on}}
        run_to_end(tree(plain_model, photos, tmp_path / name, **changes))
    for one, other in zip(_losses(tmp_path / "on"), _losses(tmp_path / "off"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_bfloat16_trains_float32_adapters_on_bfloat16_weights(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    changes = {"optimization": {"precision": "bfloat16"}, "pictures": {"crop": "random"}}
    run_to_end(tree(plain_model, photos, tmp_path / "run", **changes))
    state = load_file(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert {str(tensor.dtype) for tensor in state.values()} == {"torch.float32"}
    assert all("lora_" in name for name in state)


def test_class_pictures_are_drawn_once_and_missing_ones_are_drawn_alike(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    changes = {"optimization": {"step_count": 1}}
    run_to_end(tree(plain_model, photos, tmp_path / "first", **changes))
    (folder,) = (tmp_path / "class-images").iterdir()
    drawn = {path.name: path.read_bytes() for path in folder.iterdir()}
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "000001.png").unlink()
    run_to_end(tree(plain_model, photos, tmp_path / "second", **changes))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == drawn
    assert (folder / "000000.png").stat().st_mtime_ns == kept["000000.png"]
    assert len(set(drawn.values())) == 3
    assert digest(tmp_path / "first") == digest(tmp_path / "second")


def test_a_checkpoint_of_another_run_is_refused(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run_to_end(tree(plain_model, photos, output, optimization={"step_count": 1}))
    (output / "result").rename(tmp_path / "elsewhere")
    other = tree(plain_model, photos, output, optimization={"step_count": 1, "seed": 1})
    assert execute(check_run(other), NeverStops()) == 42
    status = json.loads((output / "status.json").read_text())
    assert (status["state"], status["violations"][0]["reason"]) == ("refused", "OTHER_RUN")


def test_a_target_that_names_no_layer_is_refused(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    wrong = tree(plain_model, photos, tmp_path / "run", lora={"denoiser_targets": ["nothing"]})
    assert execute(check_run(wrong), NeverStops()) == 42
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["violations"][0]["field"] == "lora.denoiser_targets"
