"""From checkpoints to the folder that ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.recipe.captions import load_concepts
from models.recipe.export import (
    RECOMMENDED,
    SIGNIFICANT_BITS,
    build_pipeline,
    export,
    folder_size,
    rounded,
    weights_digest,
)
from models.recipe.libraries import StableDiffusionPipeline
from models.recipe.workdir import WorkDir
from services.diffusion.families.card import read_card
from tests.models.tiny import write_work_dir


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    return write_work_dir(tmp_path_factory.mktemp("work"))


def test_the_folder_holds_the_averaged_weights(work: WorkDir, tmp_path: Path) -> None:
    target = tmp_path / "model"
    assert export(work, target) == 0
    loaded = StableDiffusionPipeline.from_pretrained(str(target))
    trained, _ = build_pipeline(work)
    for part in ("text_encoder", "unet", "vae"):
        pairs = zip(
            getattr(trained, part).state_dict().items(),
            getattr(loaded, part).state_dict().values(),
            strict=True,
        )
        for (key, expected), found in pairs:
            assert found.dtype == torch.float32, f"{part}.{key}"
            stored = rounded(expected.half(), SIGNIFICANT_BITS)
            assert torch.equal(stored.float(), found), f"{part}.{key}"
    assert loaded.vae.config.scaling_factor == trained.vae.config.scaling_factor
    assert loaded.tokenizer("a red apple").input_ids == trained.tokenizer("a red apple").input_ids
    assert loaded.safety_checker is None
    picture = loaded("a red apple", num_inference_steps=1, output_type="np").images
    assert picture.shape == (1, 128, 128, 3)


def test_rounding_keeps_so_many_bits_and_is_to_the_nearest() -> None:
    weights = torch.randn(4096, generator=torch.Generator().manual_seed(0)).half()
    as_bfloat16 = weights.float().bfloat16().float()
    assert torch.equal(rounded(weights, 8).float(), as_bfloat16)
    assert torch.equal(rounded(weights, 11), weights)
    edges = torch.tensor([0.0, 1.0, -1.0, 0.9999, -0.9999]).half()
    assert rounded(edges, 4).tolist() == [0.0, 1.0, -1.0, 1.0, -1.0]


def test_the_service_accepts_the_card(work: WorkDir, tmp_path: Path) -> None:
    export(work, tmp_path / "model")
    card = read_card(tmp_path / "model")
    assert card.vocabulary is not None
    assert len(card.vocabulary.concepts) == len(load_concepts())
    assert "light blue" in card.vocabulary.backgrounds
    assert {"puppy", "slice of pizza", "gray"} <= set(card.words)
    assert card.defaults["guidance_scale"] == RECOMMENDED.guidance_scale


def test_a_new_export_keeps_licences_and_drops_what_was_measured(
    work: WorkDir, tmp_path: Path
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    for name in ("NOTICE", "README.md", "evaluation.json"):
        (target / name).write_text("old")
    export(work, target)
    assert (target / "NOTICE").read_text() == "old"
    assert not (target / "README.md").exists()
    assert not (target / "evaluation.json").exists()
    assert list(tmp_path.iterdir()) == [target]


def test_too_large_a_model_leaves_the_old_one_alone(work: WorkDir, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match="more than 1000000"):
        export(work, target, max_size_bytes=1_000_000)
    assert [path.name for path in target.iterdir()] == ["evaluation.json"]
    assert list(tmp_path.iterdir()) == [target]


def test_the_digest_follows_the_weights(work: WorkDir, tmp_path: Path) -> None:
    target = tmp_path / "model"
    export(work, target)
    before = weights_digest(target)
    card = json.loads((target / "limner.json").read_text())
    (target / "limner.json").write_text(json.dumps(card))
    assert weights_digest(target) == before
    weights = target / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_digest(target) != before
    assert folder_size(target) > 20_000_000
