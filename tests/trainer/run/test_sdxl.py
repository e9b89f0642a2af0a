from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from services.trainer.run.base_model import read_base_model
from services.trainer.run.components import Components
from services.trainer.run.process import execute
from services.trainer.run.reading import check_run
from services.trainer.run.text import PromptEncoder
from tests.trainer.run.runs import StopAfter, digest, drawn_latents, run_to_end, tree

_TRAINED = {"optimization": {"learning_rate": 0.1, "train_text_encoder": True}}


def test_prompts_are_encoded_as_the_stock_pipeline_does(sdxl_model: Path) -> None:
    components = Components(read_base_model(sdxl_model))
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_model)
    encode = PromptEncoder(components, torch.device("cpu"), cached=True)
    text = encode(["a sks dog", ""])
    wanted, negative, pooled, negative_pooled = pipeline.encode_prompt("a sks dog")
    assert text.pooled_BP is not None
    torch.testing.assert_close(text.embeddings_BLD, torch.cat([wanted, negative]))
    torch.testing.assert_close(text.pooled_BP, torch.cat([pooled, negative_pooled]))


def test_stock_diffusers_reads_all_three_forms_of_a_lora_alike(
    sdxl_model: Path, photos: Path, tmp_path: Path
) -> None:
    run_to_end(tree(sdxl_model, photos, tmp_path / "run", **_TRAINED))
    result = tmp_path / "run" / "result"
    base = drawn_latents(StableDiffusionXLPipeline.from_pretrained(sdxl_model))
    merged = drawn_latents(StableDiffusionXLPipeline.from_pretrained(result / "model"))
    assert not torch.allclose(merged, base, atol=1e-2)
    keys = {name.split("_text_model")[0] for name in load_file(result / "lora" / "sks.safetensors")}
    assert {"lora_te1", "lora_te2"} <= keys
    for name in ("pytorch_lora_weights.safetensors", "sks.safetensors"):
        pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_model)
        pipeline.load_lora_weights(result / "lora", weight_name=name)
        assert set(pipeline.get_list_adapters()) == {"unet", "text_encoder", "text_encoder_2"}
        torch.testing.assert_close(drawn_latents(pipeline), merged, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("aspect", ["square", "buckets"])
def test_a_full_run_with_cached_text_resumes_bit_identical(
    sdxl_model: Path, photos: Path, tmp_path: Path, aspect: str
) -> None:
    changes = {
        "method": "full",
        "pictures": {"aspect": aspect, "caption_dropout": 0.25},
        "optimization": {"train_text_encoder": False},
    }
    run_to_end(tree(sdxl_model, photos, tmp_path / "whole", **changes))
    parts = tree(sdxl_model, photos, tmp_path / "parts", **changes)
    assert execute(check_run(parts), StopAfter(tmp_path / "parts", 2)) == 143
    run_to_end(parts)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    model = tmp_path / "parts" / "result" / "model"
    drawn_latents(StableDiffusionXLPipeline.from_pretrained(model))
    for part in ("text_encoder", "text_encoder_2"):
        name = f"{part}/model.safetensors"
        before, after = load_file(sdxl_model / name), load_file(model / name)
        assert all(torch.equal(before[key], after[key]) for key in before)
