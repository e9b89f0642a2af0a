"""Stage 4: the text encoder learns what captions look like before the denoiser has to.

Called by the command line. The last places of the token window, which no prompt of ordinary length
reaches, are *slots*: a linear head must paint from each the patch of the centred drawing's latent
that lies there. So the denoiser finds in the text where what is, and need not learn it thing by
thing. The head is thrown away. Legend: B batch, L tokens, D text width, N slots, P numbers of a
patch, C channels, h and w latent sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.recipe.codes import attach, build_codes
from models.recipe.dataset import Dataset
from models.recipe.draws import Draws
from models.recipe.latents import load_latents, work_scale
from models.recipe.loop import LossFunction
from models.recipe.tokenizer import TOKEN_WINDOW, owners_of
from models.recipe.workdir import WorkDir

TEXT_WIDTH = 288
PATCH_SIDE = 4
SLOT_COUNT = 16
_PATCH_NUMBERS = 4 * PATCH_SIDE**2


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder, three layers.

    It has more and smaller heads than usual: each can carry another part of a thing's code.
    """
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=18,
            max_position_embeddings=TOKEN_WINDOW,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attention_dropout=0.0,
        )
    )


def build_coded_encoder(work: WorkDir, dataset: Dataset, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder with the codes of all drawings."""
    encoder = build_text_encoder(tokenizer)
    encoded = load_latents(dataset, work.latent_chunks[:1])
    names = owners_of(tokenizer, dataset.concepts)
    attach(encoder, build_codes(dataset, encoded, work_scale(work), names, TEXT_WIDTH))
    return encoder


def build_head() -> nn.Linear:
    """Paints a patch from a slot's state."""
    return nn.Linear(TEXT_WIDTH, _PATCH_NUMBERS)


def patches(latents_BChw: Tensor) -> Tensor:
    """Latents cut into squares, row by row: [B, N, P]."""
    squares = F.unfold(latents_BChw, PATCH_SIDE, stride=PATCH_SIDE)
    return squares.transpose(1, 2)


def text_loss(
    model: CLIPTextModel, head: nn.Linear, draws: Draws, batch: int, device: torch.device
) -> LossFunction:
    """Mean squared error of the patches."""

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        local = torch.Generator(device)
        local.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        drawn = draws.batch(batch, local)
        states_BLD = model(drawn.tokens_BL)[0]
        painted_BNP = head(states_BLD[:, -SLOT_COUNT:]).float()
        return F.mse_loss(painted_BNP, patches(drawn.latents_BChw)), {}

    return loss


def as_modules(model: CLIPTextModel, head: nn.Linear) -> dict[str, nn.Module]:
    """The names under which checkpoints hold encoder and head."""
    return {"text": model, "head": head}
