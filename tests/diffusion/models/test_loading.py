from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.diffusion.families.errors import (
    BrokenModelError,
    ModelLoadError,
    ModelNotReachableError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from services.diffusion.families.loading import load_model
from services.diffusion.model import LoadedModel, ModelSpec

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

Load = Callable[[Path], LoadedModel]


@pytest.fixture
def copy(emoji_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(emoji_folder, tmp_path / "model")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_sizes_and_limits_follow_from_the_configuration(plain_model: LoadedModel) -> None:
    assert plain_model.latent_shape(72, 64) == (4, 16, 18)
    assert plain_model.limits.side_multiple == 8
    assert (plain_model.limits.min_side, plain_model.limits.max_side) == (32, 128)
    assert plain_model.limits.max_pixel_count == 96 * 96
    assert plain_model.limits.max_prompt_length == 256
    assert (plain_model.defaults.width, plain_model.defaults.height) == (64, 64)
    assert plain_model.vocabulary is None
    assert plain_model.schedule.prediction_type == "epsilon"
    assert "euler" in plain_model.samplers


def test_the_card_overrides_what_it_names_and_nothing_else(emoji_model: LoadedModel) -> None:
    assert emoji_model.display_name == "Tiny Emoji"
    assert emoji_model.license == "CC0-1.0"
    assert emoji_model.defaults.step_count == 8
    assert emoji_model.defaults.sampler == "ddim"
    assert emoji_model.defaults.width == 64
    assert emoji_model.vocabulary is not None
    assert "rocket" in emoji_model.vocabulary.concepts
    assert emoji_model.schedule.prediction_type == "v_prediction"


def test_the_revision_is_the_content_and_not_the_place(
    load: Load, copy: Path, emoji_model: LoadedModel
) -> None:
    assert load(copy).revision == emoji_model.revision

    weights = load_file(copy / UNET_WEIGHTS)
    weights["conv_out.bias"] = weights["conv_out.bias"] + 1.0
    save_file(weights, copy / UNET_WEIGHTS)

    assert load(copy).revision != emoji_model.revision


def test_half_precision_weights_are_computed_with_in_float32(load: Load, copy: Path) -> None:
    half = {key: value.half() for key, value in load_file(copy / UNET_WEIGHTS).items()}
    save_file(half, copy / UNET_WEIGHTS, metadata={"format": "pt"})
    model = load(copy)
    latents = torch.randn(1, *model.latent_shape(64, 64))

    output = model.denoise(latents, torch.tensor([500.0]), model.encode_prompts(["x"]))

    assert output.dtype == torch.float32
    assert torch.isfinite(output).all()


def test_a_missing_folder_is_named(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ModelNotReachableError, match=r"model tiny: there is no folder .*nowhere"):
        load(tmp_path / "nowhere")


def test_an_unreachable_hub_id_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Refused at once, whatever network this machine has.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(ModelNotReachableError) as failure:
        load_model(ModelSpec(name="sd", path_or_hub_id="no-such-owner/no-such-model"))

    assert str(failure.value).startswith("model sd: there is no folder no-such-owner/no-such-model")
    assert "model hub" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_another_architecture_is_named(load: Load, copy: Path) -> None:
    edit_json(
        copy / "model_index.json",
        _class_name="StableDiffusionXLPipeline",
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
    )

    with pytest.raises(UnsupportedModelError, match=r"StableDiffusionXLPipeline.*text_encoder_2"):
        load(copy)


def test_a_foreign_component_is_named(load: Load, copy: Path) -> None:
    edit_json(copy / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])

    with pytest.raises(UnsupportedModelError, match=r"T5EncoderModel, not CLIPTextModel"):
        load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, "in_channels is 9, an inpainting model"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim 256 is not served"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time' is not served"),
    ],
)
def test_unserved_variants_of_the_unet_are_refused(
    load: Load, copy: Path, changes: dict[str, Any], message: str
) -> None:
    edit_json(copy / "unet" / "config.json", **changes)

    with pytest.raises(UnsupportedModelError, match=message):
        load(copy)


def test_components_of_different_width_are_refused(load: Load, copy: Path) -> None:
    edit_json(copy / "unet" / "config.json", cross_attention_dim=8)

    with pytest.raises(BrokenModelError, match="cross_attention_dim 8 does not fit"):
        load(copy)


def test_an_unsupported_schedule_is_refused(load: Load, copy: Path) -> None:
    edit_json(copy / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid")

    with pytest.raises(UnsupportedModelError, match="sigmoid"):
        load(copy)


def test_pickled_weights_are_refused_unread(load: Load, copy: Path) -> None:
    (copy / UNET_WEIGHTS).unlink()
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never read")

    with pytest.raises(UnsafeWeightsError, match="only safetensors"):
        load(copy)


def test_missing_weights_are_not_replaced_by_random_ones(load: Load, copy: Path) -> None:
    weights = load_file(copy / UNET_WEIGHTS)
    del weights["conv_out.weight"]
    save_file(weights, copy / UNET_WEIGHTS, metadata={"format": "pt"})

    with pytest.raises(BrokenModelError, match=r"missing keys conv_out\.weight"):
        load(copy)


def test_a_truncated_weights_file_is_a_broken_model(load: Load, copy: Path) -> None:
    path = copy / UNET_WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(BrokenModelError, match="unet cannot be loaded"):
        load(copy)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"defaults": {"steps": 3}}, "steps is not one of"),
        ({"defaults": {"step_count": 2.5}}, "step_count must be int"),
        ({"defaults": {"sampler": "best"}}, "sampler best"),
        ({"defaults": {"width": 60}}, "width 60"),
        ({"limits": {"max_side": 32}}, "width 64"),
        ({"vocabulary": {"concepts": "apple"}}, "vocabulary.concepts"),
    ],
)
def test_a_wrong_card_is_refused_with_what_is_wrong(
    load: Load, copy: Path, card: dict[str, Any], message: str
) -> None:
    (copy / "limner.json").write_text(json.dumps(card))

    with pytest.raises(BrokenModelError, match=message):
        load(copy)


def test_cuda_without_a_cuda_device_is_an_error(plain_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")

    with pytest.raises(ModelLoadError, match="finds no CUDA device"):
        load_model(ModelSpec(name="x", path_or_hub_id=str(plain_folder), device="cuda"))
