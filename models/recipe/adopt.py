"""Starts training from a model that was trained before, with the same parts and vocabulary.

Called by the command line. Writes the starting points that the stages look for. A model of another
architecture lends its autoencoder alone. Does not train.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from torch import nn
from transformers import CLIPTextModel

from models.recipe import autoencoder, denoiser
from models.recipe.libraries import AutoencoderTiny, UNet2DConditionModel
from models.recipe.plan import Plan
from models.recipe.state import State
from models.recipe.text import build_text_encoder
from models.recipe.tokenizer import load_tokenizer
from models.recipe.workdir import WorkDir

logger = logging.getLogger(__name__)


def adopt(folder: Path, work: WorkDir) -> None:
    """Take tokenizer and weights of the model in `folder`.

    Raises RuntimeError, as torch does, when the autoencoder has another shape.
    """
    vae = autoencoder.build_autoencoder()
    vae.load_state_dict(AutoencoderTiny.from_pretrained(folder / "vae").state_dict())
    _write(autoencoder.as_modules(vae), work.start_autoencoder)
    unet = denoiser.build_denoiser()
    encoder = build_text_encoder(load_tokenizer(folder / "tokenizer"))
    try:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
        encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict())
    except RuntimeError as error:
        logger.info("only the autoencoder is adopted: %s", str(error).splitlines()[0])
        return
    shutil.copytree(folder / "tokenizer", work.tokenizer, dirs_exist_ok=True)
    rows = encoder.embeddings.token_embedding
    encoder.embeddings.token_embedding = nn.Identity()  # type: ignore[assignment]
    _write({**denoiser.as_modules(unet), "text": encoder, "rows": rows}, work.start)


def _write(modules: dict[str, nn.Module], path: Path) -> None:
    State(modules, Plan(learning_rate=1.0, step_count=1)).save_averaged(path)
