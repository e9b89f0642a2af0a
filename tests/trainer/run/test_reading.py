import json
import shutil
from pathlib import Path

import pytest
import yaml

from services.trainer.run.configuration import OptimizationSection
from services.trainer.run.reading import check_run, read_run
from services.trainer.run.violations import RefusedError
from tests.trainer.run.runs import tree, write_photos, write_yaml


def _refused(content: dict[str, object]) -> dict[str, str]:
    with pytest.raises(RefusedError) as caught:
        check_run(content)
    return {found.field: found.reason for found in caught.value.violations}


def test_all_mistakes_are_reported_at_once(plain_model: Path, tmp_path: Path) -> None:
    bad_photos = write_photos(tmp_path / "photos", 2)
    shutil.copy(bad_photos / "0.png", bad_photos / "9.png")
    (bad_photos / "text.png").write_text("no picture")
    (bad_photos / "cut.png").write_bytes((bad_photos / "1.png").read_bytes()[:200])
    write_photos(tmp_path / "small", 1, side=16)
    shutil.copy(tmp_path / "small" / "0.png", bad_photos / "tiny.png")
    content = tree(
        plain_model,
        bad_photos,
        tmp_path / "run",
        method="full",
        lora={"rank": 8},
        pictures={"side": 63, "crop": "random", "cache_latents": True},
        optimization={"learning_rate": -1, "stepcount": 3, "cache_text_embeddings": True},
    )
    content["surprise"] = 1
    assert _refused(content) == {
        "optimization.learning_rate": "GREATER_THAN",
        "optimization.stepcount": "UNKNOWN_KEY",
        "surprise": "UNKNOWN_KEY",
        "lora": "IMPOSSIBLE_COMBINATION",
        "optimization.cache_text_embeddings": "IMPOSSIBLE_COMBINATION",
        "pictures.cache_latents": "IMPOSSIBLE_COMBINATION",
        "pictures.side": "NOT_A_MULTIPLE",
        "instance.images[9.png]": "DUPLICATE",
        "instance.images[cut.png]": "BROKEN",
        "instance.images[text.png]": "NOT_AN_IMAGE",
        "instance.images[tiny.png]": "TOO_SMALL",
    }


def test_what_is_missing_is_named(plain_model: Path, tmp_path: Path) -> None:
    assert _refused({"base_model": str(plain_model)}) == {
        "output": "MISSING",
        "instance": "MISSING",
    }
    content = tree(tmp_path / "nowhere", tmp_path / "nothing", tmp_path / "run")
    assert _refused(content) == {"base_model": "UNUSABLE_BASE", "instance.images": "NOT_FOUND"}


def test_prompts_must_tell_subject_and_class_apart(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    content = tree(
        plain_model,
        photos,
        tmp_path / "run",
        instance={"prompt": "a dog"},
        prior={"prompt": "a sks dog"},
    )
    assert set(_refused(content)) == {"instance.prompt", "prior.prompt"}


def test_captions_come_from_text_files_and_bad_ones_are_named(
    plain_model: Path, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    (photos / "0.txt").write_text("a sks dog on grass\n")
    content = tree(plain_model, photos, tmp_path / "run", instance={"captions": True})
    captions = [picture.caption for picture in check_run(content).instances]
    assert captions == ["a sks dog on grass", None, None]
    (photos / "1.txt").write_text("  ")
    assert _refused(content) == {"instance.images[1.png]": "BAD_CAPTION"}


def test_defaults_follow_size_family_and_method(
    plain_model: Path, sdxl_model: Path, photos: Path, tmp_path: Path
) -> None:
    unet = plain_model / "unet" / "config.json"
    large = shutil.copytree(plain_model, tmp_path / "large")
    config = json.loads(unet.read_text())
    (large / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 64}))

    def checked(base: Path, method: str) -> OptimizationSection:
        minimal = {
            "base_model": str(base),
            "output": str(tmp_path),
            "method": method,
            "instance": {"images": str(photos), "prompt": "a sks dog"},
            "pictures": {"side": 64},
        }
        run = check_run(minimal)
        assert run.configuration.prior is None
        return run.configuration.optimization

    assert checked(plain_model, "lora").learning_rate == 1e-3
    assert checked(plain_model, "full").learning_rate == 1e-4
    assert checked(large, "lora").learning_rate == 1e-4
    assert checked(large, "full").learning_rate == 2e-6
    assert checked(large, "full").gradient_checkpointing
    config = json.loads((sdxl_model / "unet" / "config.json").read_text())
    wide = shutil.copytree(sdxl_model, tmp_path / "wide")
    (wide / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 128}))
    assert not checked(wide, "lora").train_text_encoder


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    for name, text in (("list", "- 1"), ("broken", "a: [1"), ("tag", "!!python/object:os.x {}")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        with pytest.raises(RefusedError, match=r"\.yaml"):
            read_run(path)
    with pytest.raises(RefusedError, match="No such file"):
        read_run(tmp_path / "absent.yaml")


def test_where_results_go_does_not_decide_numbers(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    content = tree(plain_model, photos, tmp_path / "one")
    path = write_yaml(tmp_path / "run.yaml", content | {"output": str(tmp_path / "two")})
    moved = shutil.copytree(photos, tmp_path / "moved")
    elsewhere = yaml.safe_load(path.read_text())
    elsewhere["instance"]["images"] = str(moved)
    one = check_run(content).fingerprint()
    assert read_run(path).fingerprint() == check_run(elsewhere).fingerprint() == one
    content["optimization"]["seed"] = 7
    assert check_run(content).fingerprint() != one
