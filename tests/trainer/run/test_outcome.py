import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from services.trainer.run.reading import check_run
from tests.trainer.run.runs import drawn_latents, run_to_end, tree


@pytest.fixture(scope="module")
def lora_result(plain_model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lora") / "run"
    # The rank differs from alpha, so that a reader which ignores alpha draws another picture.
    run_to_end(tree(plain_model, photos, output, optimization={"learning_rate": 0.1}))
    return output / "result"


def test_stock_diffusers_reads_all_three_forms_of_a_lora_alike(
    plain_model: Path, lora_result: Path
) -> None:
    base = drawn_latents(StableDiffusionPipeline.from_pretrained(plain_model))
    merged = drawn_latents(StableDiffusionPipeline.from_pretrained(lora_result / "model"))
    assert not torch.allclose(merged, base, atol=1e-2)
    for name in ("pytorch_lora_weights.safetensors", "sks.safetensors"):
        pipeline = StableDiffusionPipeline.from_pretrained(plain_model)
        pipeline.load_lora_weights(lora_result / "lora", weight_name=name)
        adapters = pipeline.get_list_adapters()
        assert set(adapters) == {"unet", "text_encoder"}
        torch.testing.assert_close(drawn_latents(pipeline), merged, atol=1e-3, rtol=1e-3)


def test_the_single_file_has_down_up_and_alpha_of_every_layer(lora_result: Path) -> None:
    tensors = load_file(lora_result / "lora" / "sks.safetensors")
    layers = {name.split(".")[0] for name in tensors}
    assert any(layer.startswith("lora_unet_down_blocks_1_attentions_0") for layer in layers)
    assert any(layer.startswith("lora_te_text_model_encoder_layers_0") for layer in layers)
    for layer in layers:
        down, up = tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"]
        assert down.shape[0] == up.shape[1] == 4
        assert float(tensors[f"{layer}.alpha"]) == 2.0


def test_a_full_run_changes_unet_and_text_encoder_and_not_the_autoencoder(
    emoji_like_model: Path, photos: Path, tmp_path: Path
) -> None:
    run_to_end(tree(emoji_like_model, photos, tmp_path / "run", method="full"))
    model = tmp_path / "run" / "result" / "model"
    drawn_latents(StableDiffusionPipeline.from_pretrained(model))
    for part, file, changes in (
        ("unet", "diffusion_pytorch_model.safetensors", True),
        ("text_encoder", "model.safetensors", True),
        ("vae", "diffusion_pytorch_model.safetensors", False),
    ):
        before, after = load_file(emoji_like_model / part / file), load_file(model / part / file)
        assert before.keys() == after.keys()
        config = f"{part}/config.json"
        assert (model / config).read_bytes() == (emoji_like_model / config).read_bytes()
        assert changes is any(not torch.equal(before[name], after[name]) for name in before)
    assert "sks" in json.loads((model / "limner.json").read_text())["words"]


def test_the_result_is_on_the_disk_when_the_run_has_ended(
    plain_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    sync = os.fsync

    def note(descriptor: int) -> None:
        sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    run_to_end(tree(plain_model, photos, tmp_path / "run"))
    result = tmp_path / "run" / "result"
    written = [result.parent, result, *result.rglob("*")]
    assert [path for path in written if path.stat().st_ino not in synced] == []


def test_the_result_says_how_to_repeat_it(
    plain_model: Path, photos: Path, lora_result: Path, tmp_path: Path
) -> None:
    resolved = yaml.safe_load((lora_result / "configuration.yaml").read_text())
    again = check_run(resolved)
    facts = json.loads((lora_result / "run.json").read_text())
    assert again.fingerprint() == facts["fingerprint"]
    assert again.base_revision == facts["base_revision"]
    assert facts["token"] == "sks"
    assert facts["step"] == resolved["optimization"]["step_count"] == 4
    assert (lora_result / "samples" / "0.png").is_file()
