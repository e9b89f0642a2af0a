"""Stage 6: from checkpoints to `models/limner-emoji`, a folder in diffusers layout.

Called by the command line. The averaged weights are stored in float16; whoever loads them computes
in the precision of their choice. Beside them goes `limner.json`, what Limner wants to know. The
licences in the folder are kept; what was measured on other weights (evaluation, card) is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.recipe import autoencoder, decoder, denoiser
from models.recipe.captions import BACKGROUNDS, STYLES, Concept, known_words, strip_article
from models.recipe.codes import bake
from models.recipe.dataset import IMAGE_SIZE, load_dataset
from models.recipe.latents import work_scale
from models.recipe.libraries import AutoencoderTiny, StableDiffusionPipeline
from models.recipe.state import load_ema
from models.recipe.text import build_coded_encoder
from models.recipe.tokenizer import load_tokenizer
from models.recipe.workdir import WorkDir

MAX_SIZE_BYTES = 25_000_000
LICENCES = ("LICENSE", "NOTICE")
WEIGHTS = (
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
DESCRIPTION = (
    "A small latent diffusion model that draws everyday things in the style of Fluent emoji: "
    "three-dimensional, flat or in black lines, in colours and places of your choice, on any of "
    "twelve background colours. It knows the words of its vocabulary and no others."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """Recommended settings; `sampler` is a name that Limner's diffusion service knows."""

    step_count: int = 20
    guidance_scale: float = 3.0
    sampler: str = "ddim"


RECOMMENDED = Defaults()
SIGNIFICANT_BITS = 8
"""Kept of every weight, as bfloat16 does; the zeros behind them let git compress the files."""
_FLOAT16_BITS = 11


def build_pipeline(
    work: WorkDir, weights: Path | None = None
) -> tuple[StableDiffusionPipeline, int]:
    """The pipeline from averaged weights, float32; and the denoiser's step.

    `weights` is a snapshot; None means where the training is.
    """
    tokenizer = load_tokenizer(work.tokenizer)
    text_encoder = build_coded_encoder(work, load_dataset(work.root), tokenizer)
    unet = denoiser.build_denoiser()
    load_ema(work.text, {"text": text_encoder})
    step = load_ema(weights or work.denoiser, denoiser.as_modules(unet))
    bake(text_encoder)
    vae = load_autoencoder(work)
    vae.register_to_config(scaling_factor=work_scale(work))
    for part in (text_encoder, unet):
        part.train(False)
    pipeline = StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        vae=vae,
        scheduler=denoiser.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, step


def load_autoencoder(work: WorkDir) -> AutoencoderTiny:
    """The autoencoder after its last phase, with the polished decoder if there is one."""
    model = autoencoder.build_autoencoder()
    load_ema(work.autoencoder(len(autoencoder.PHASES)), autoencoder.as_modules(model))
    if work.decoder.exists():
        load_ema(work.decoder, decoder.as_modules(model))
    model.eval()
    return model


def model_card(concepts: Sequence[Concept], defaults: Defaults) -> dict[str, object]:
    """Contents of `limner.json`."""
    return {
        "display_name": "Limner Emoji",
        "description": DESCRIPTION,
        "license": "Apache-2.0 AND MIT",
        "vocabulary": {
            "concepts": [strip_article(concept.phrase) for concept in concepts],
            "styles": list(STYLES),
            "backgrounds": list(BACKGROUNDS),
        },
        "words": known_words(concepts),
        "defaults": {
            "width": IMAGE_SIZE,
            "height": IMAGE_SIZE,
            "step_count": defaults.step_count,
            "guidance_scale": defaults.guidance_scale,
            "sampler": defaults.sampler,
        },
    }


def export(
    work: WorkDir,
    target: Path,
    defaults: Defaults = RECOMMENDED,
    *,
    significant_bits: int = SIGNIFICANT_BITS,
    max_size_bytes: int = MAX_SIZE_BYTES,
) -> int:
    """Write the model to `target`, replacing what is there in one go; returns the denoiser's step.

    Raises ValueError, and leaves `target` as it was, when the result is too large.
    """
    pipeline, step = build_pipeline(work)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / target.name
        card = model_card(load_dataset(work.root).concepts, defaults)
        write_model(pipeline, card, folder, significant_bits)
        for name in LICENCES:
            if (target / name).exists():
                shutil.copy2(target / name, folder / name)
        size = folder_size(folder)
        if size > max_size_bytes:
            raise ValueError(f"the model takes {size} bytes, more than {max_size_bytes}")
        swap(folder, target, Path(scratch) / "old")
    return step


def rounded(weights: Tensor, significant_bits: int) -> Tensor:
    """float16 rounded to so many significant bits, 1 to 11, ties to even; still float16."""
    dropped = _FLOAT16_BITS - significant_bits
    if dropped == 0:
        return weights
    bits = weights.contiguous().view(torch.int16).to(torch.int32)
    odd = (bits >> dropped) & 1
    kept = ((bits + (1 << (dropped - 1)) - 1 + odd) >> dropped) << dropped
    return kept.to(torch.int16).view(torch.float16)


def write_model(
    pipeline: StableDiffusionPipeline,
    card: dict[str, object],
    folder: Path,
    significant_bits: int = SIGNIFICANT_BITS,
) -> None:
    """Write `pipeline` in float16 and `limner.json` to `folder`; the pipeline ends in float16."""
    for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        part.half()
        for parameter in part.parameters():
            parameter.data = rounded(parameter.data, significant_bits)
    pipeline.save_pretrained(folder, safe_serialization=True)
    _declare_float32(folder / "text_encoder" / "config.json")
    (folder / "limner.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    folder.chmod(0o755)


def _declare_float32(config: Path) -> None:
    """Have transformers load the encoder in float32, as diffusers loads the other parts.

    transformers takes the precision named here, whatever the file holds; without this the stock
    pipeline mixes the two and stops.
    """
    values = json.loads(config.read_text())
    values["dtype"] = "float32"
    config.write_text(json.dumps(values, indent=2) + "\n")


def swap(folder: Path, target: Path, old: Path) -> None:
    """Put `folder` in the place of `target`, whose former content goes to `old`."""
    if target.exists():
        os.replace(target, old)
    os.replace(folder, target)


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weight files, so that measurements can name what they measured."""
    digest = hashlib.sha256()
    for name in WEIGHTS:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
