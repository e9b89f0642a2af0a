from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from safetensors.torch import load_file

from services.trainer.run.base_model import BaseModelError, read_base_model
from services.trainer.run.components import Components, encode_moments
from services.trainer.run.noising import Flow
from services.trainer.run.objective import squared_errors
from services.trainer.run.process import execute
from services.trainer.run.randomness import uniform
from services.trainer.run.reading import check_run
from services.trainer.run.text import PromptEncoder
from services.trainer.run.violations import RefusedError
from tests.trainer.run.runs import StopAfter, digest, drawn_latents, run_to_end, tree
from tests.trainer.run.sd3 import write_sd3_model

_SHIFTED = FlowMatchEulerDiscreteScheduler(shift=3.0)
_LORA = {"lora": {"denoiser_targets": ["attn.to_q", "attn.to_v", "attn.add_k_proj"]}}


def test_the_loss_is_that_of_diffusers_script() -> None:
    """train_dreambooth_lora_sd3.py with logit-normal weighting; its option to precondition outputs
    weights the same errors by the square of the noise level."""
    numbers = torch.Generator().manual_seed(0)
    latents, noise, returned = torch.randn(3, 4, 16, 8, 8, generator=numbers)
    levels = torch.tensor([0, 120, 600, 999])
    flow = Flow(_SHIFTED)

    timesteps = _SHIFTED.timesteps[levels]
    places = [(_SHIFTED.timesteps == t).nonzero().item() for t in timesteps]
    sigmas = _SHIFTED.sigmas[places][:, None, None, None]
    noisy = (1.0 - sigmas) * latents + sigmas * noise
    weighting = compute_loss_weighting_for_sd3("logit_normal", sigmas)
    plain = (weighting * (returned - (noise - latents)).square()).reshape(4, -1).mean(1)
    restored = returned * -sigmas + noisy
    preconditioned = (weighting * (restored - latents).square()).reshape(4, -1).mean(1)

    torch.testing.assert_close(flow.noisy(latents, noise, levels), noisy)
    torch.testing.assert_close(flow.times(levels), timesteps)
    found = squared_errors(returned, flow.target(latents, noise, levels))
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(found * sigmas.flatten().square(), preconditioned)


def test_levels_are_drawn_as_diffusers_draws_them() -> None:
    flow = Flow(_SHIFTED)
    drawn = torch.tensor([flow.drawn_level(uniform(0, "timestep", i)) for i in range(20_000)])
    shares = compute_density_for_timestep_sampling(
        "logit_normal", 20_000, 0.0, 1.0, generator=torch.Generator().manual_seed(0)
    )
    wanted = (shares * 1000).long()
    points = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99], dtype=torch.float64)
    torch.testing.assert_close(
        drawn.double().quantile(points), wanted.double().quantile(points), atol=15.0, rtol=0.0
    )
    assert flow.drawn_level(0.0) == 0
    assert flow.drawn_level(1.0 - 2.0**-53) == 999
    assert [flow.level(share) for share in (0.1, 0.9)] == [900, 99]


@pytest.mark.parametrize("third_encoder", [True, False])
def test_prompts_are_encoded_as_the_stock_pipeline_does(
    sd3_model: Path, tmp_path: Path, third_encoder: bool
) -> None:
    folder = sd3_model if third_encoder else write_sd3_model(tmp_path, third_encoder=False)
    components = Components(read_base_model(folder))
    encode = PromptEncoder(components, torch.device("cpu"), cached=True)
    encode.prepare(["a sks dog", ""])
    assert not components.loaded
    text = encode(["a sks dog", ""])
    absent = {} if third_encoder else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    wanted, negative, pooled, negative_pooled = pipeline.encode_prompt("a sks dog", None, None)
    assert text.pooled_BP is not None
    near = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(text.embeddings_BLD, torch.cat([wanted, negative]), **near)
    torch.testing.assert_close(text.pooled_BP, torch.cat([pooled, negative_pooled]))


def test_latents_are_shifted_and_scaled_as_diffusers_does(sd3_model: Path) -> None:
    vae: Any = Components(read_base_model(sd3_model)).part("vae")
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean, deviation = encode_moments(vae, picture)
        wanted = vae.encode(picture).latent_dist
    assert deviation is not None
    assert mean.shape == (1, 16, 16, 16)
    noise = torch.randn(mean.shape)
    sampled = wanted.mean + wanted.std * noise
    scaled = (sampled - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(mean + deviation * noise, scaled)


def test_stock_diffusers_reads_a_lora_and_the_merged_model_alike(
    sd3_model: Path, photos: Path, tmp_path: Path
) -> None:
    changes = {"optimization": {"learning_rate": 0.1, "train_text_encoder": True}, **_LORA}
    run_to_end(tree(sd3_model, photos, tmp_path / "run", **changes))
    result = tmp_path / "run" / "result"
    base = drawn_latents(StableDiffusion3Pipeline.from_pretrained(sd3_model))
    merged = drawn_latents(StableDiffusion3Pipeline.from_pretrained(result / "model"))
    assert not torch.allclose(merged, base, atol=1e-2)
    (file,) = (result / "lora").iterdir()  # of such a model everybody reads diffusers' layout
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_model)
    pipeline.load_lora_weights(result / "lora", weight_name=file.name)
    assert set(pipeline.get_list_adapters()) == {"transformer", "text_encoder", "text_encoder_2"}
    torch.testing.assert_close(drawn_latents(pipeline), merged, atol=1e-3, rtol=1e-3)
    third = "text_encoder_3/model.safetensors"
    assert (result / "model" / third).read_bytes() == (sd3_model / third).read_bytes()


def test_a_run_resumes_bit_identical(sd3_model: Path, photos: Path, tmp_path: Path) -> None:
    changes = {
        "pictures": {"caption_dropout": 0.25},
        "optimization": {"train_text_encoder": False, "gradient_checkpointing": True},
        **_LORA,
    }
    run_to_end(tree(sd3_model, photos, tmp_path / "whole", **changes))
    parts = tree(sd3_model, photos, tmp_path / "parts", **changes)
    assert execute(check_run(parts), StopAfter(tmp_path / "parts", 2)) == 143
    run_to_end(parts)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_a_full_run_writes_a_whole_model(sd3_model: Path, photos: Path, tmp_path: Path) -> None:
    changes = {"method": "full", "optimization": {"step_count": 1, "train_text_encoder": False}}
    run_to_end(tree(sd3_model, photos, tmp_path / "run", **changes))
    model = tmp_path / "run" / "result" / "model"
    drawn_latents(StableDiffusion3Pipeline.from_pretrained(model))
    name = "transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(sd3_model / name), load_file(model / name)
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[key], after[key]) for key in before)


def test_what_has_no_meaning_for_a_flow_is_refused(sd3_model: Path, photos: Path) -> None:
    changes = {
        "optimization": {"min_snr_gamma": 5.0},
        "pictures": {"side": 96, "aspect": "buckets"},
        **_LORA,
    }
    with pytest.raises(RefusedError) as refused:
        check_run(tree(sd3_model, photos, Path("run"), **changes))
    assert {(one.field, one.reason) for one in refused.value.violations} == {
        ("optimization.min_snr_gamma", "IMPOSSIBLE_COMBINATION"),
        # 12 patches of 2 latents of 4 pixels are 96; the oblong buckets are longer.
        ("pictures.side", "TOO_LARGE"),
    }


def test_a_model_whose_shards_are_missing_is_refused(tmp_path: Path) -> None:
    folder = write_sd3_model(tmp_path / "model")
    third = folder / "text_encoder_3"
    (third / "model.safetensors").rename(third / "model-00001-of-00002.safetensors")
    shards = '{"weight_map": {"shared.weight": "model-00001-of-00002.safetensors", "x": "%s"}}'
    index = third / "model.safetensors.index.json"
    index.write_text(shards % "model-00001-of-00002.safetensors")
    assert read_base_model(folder).optional_text_part == "text_encoder_3"
    index.write_text(shards % "model-00002-of-00002.safetensors")
    with pytest.raises(BaseModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        read_base_model(folder)
    index.write_text(shards % "../../etc/passwd")
    with pytest.raises(BaseModelError, match="names no files"):
        read_base_model(folder)
