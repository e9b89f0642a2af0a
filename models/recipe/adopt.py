"""Starts training from a model that was trained before, with another vocabulary.

Called by the command line. Writes the starting points that the stages look for; what the tokenizers
share keeps its embedding. Does not train.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from models.recipe import autoencoder, denoiser
from models.recipe.libraries import AutoencoderTiny, UNet2DConditionModel
from models.recipe.plan import Plan
from models.recipe.state import State
from models.recipe.text import build_text_encoder
from models.recipe.tokenizer import load_tokenizer
from models.recipe.workdir import WorkDir

_EMBEDDING = "embeddings.token_embedding.weight"


def adopt(folder: Path, work: WorkDir) -> None:
    """Take the weights of the model in `folder`; the tokenizer of `work` must be there.

    Raises RuntimeError, as torch does, when a part has another shape.
    """
    vae = autoencoder.build_autoencoder()
    vae.load_state_dict(AutoencoderTiny.from_pretrained(folder / "vae").state_dict())
    unet = denoiser.build_denoiser()
    unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
    text_encoder = transplant(
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        load_tokenizer(work.tokenizer),
    )
    plan = Plan(learning_rate=1.0, step_count=1)
    State(autoencoder.as_modules(vae), plan).save_averaged(work.start_autoencoder)
    State(denoiser.as_modules(unet, text_encoder), plan).save_averaged(work.start)


def transplant(
    old: CLIPTextModel, old_tokenizer: CLIPTokenizer, tokenizer: CLIPTokenizer
) -> CLIPTextModel:
    """A text encoder for `tokenizer` with the weights of `old`; new tokens start at random."""
    model = build_text_encoder(tokenizer)
    weights = {key: value.float() for key, value in old.state_dict().items()}
    name = next(key for key in weights if key.endswith(_EMBEDDING))
    before, after = old_tokenizer.get_vocab(), tokenizer.get_vocab()
    spread = float(weights[name].std())
    generator = torch.Generator().manual_seed(0)
    embedding = spread * torch.randn(len(after), weights[name].shape[1], generator=generator)
    for token, place in after.items():
        if token in before:
            embedding[place] = weights[name][before[token]]
    model.load_state_dict({**weights, name: embedding})
    return model
