"""Stage 2: the text encoder learns what captions mean before the denoiser has to.

Called by the command line. From the state at the end marker, linear heads name concept, style and
background, and paint a thumbnail of the drawing. The heads are thrown away. Legend: B batch,
D text width, C colours, H and W pixels of the thumbnail.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.recipe.captions import BACKGROUNDS, STYLES, draw_caption
from models.recipe.dataset import Dataset, composite
from models.recipe.loop import LossFunction
from models.recipe.tokenizer import TOKEN_WINDOW, tokenize

TEXT_WIDTH = 192
THUMBNAIL_SIZE = 16

_BACKGROUND_NAMES = tuple(BACKGROUNDS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder, three layers, 1.2 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=3,
            max_position_embeddings=TOKEN_WINDOW,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attention_dropout=0.0,
        )
    )


def build_heads(concept_count: int) -> nn.ModuleDict:
    """Linear probes of the pooled state; class 0 of style and background means unnamed."""
    return nn.ModuleDict(
        {
            "concept": nn.Linear(TEXT_WIDTH, concept_count),
            "style": nn.Linear(TEXT_WIDTH, 1 + len(STYLES)),
            "background": nn.Linear(TEXT_WIDTH, 1 + len(_BACKGROUND_NAMES)),
            "thumbnail": nn.Linear(TEXT_WIDTH, 3 * THUMBNAIL_SIZE**2),
        }
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionBatch:
    """Captions and what they say."""

    captions: list[str]
    concepts_B: Tensor
    styles_B: Tensor
    backgrounds_B: Tensor
    thumbnails_BCHW: Tensor


def thumbnails(dataset: Dataset) -> Tensor:
    """The centred view of every drawing, averaged down: float32 RGBA [drawing, 4, 16, 16]."""
    centred = torch.from_numpy(np.array(dataset.views[:, 0])).float()
    return F.avg_pool2d(centred, centred.shape[-1] // THUMBNAIL_SIZE)


def draw_batch(dataset: Dataset, small_N4HW: Tensor, count: int, random: Random) -> CaptionBatch:
    """Random captions of random drawings, half with a background, half with the style named."""
    captions, labels, chosen = [], [], []
    for _ in range(count):
        index = random.randrange(len(dataset.drawings))
        drawing = dataset.drawings[index]
        background = None if random.random() < 0.5 else random.choice(_BACKGROUND_NAMES)
        named = random.random() < 0.5
        concept = dataset.concepts[drawing.concept_index]
        captions.append(draw_caption(concept, drawing.style, background, random, style_named=named))
        style = 1 + STYLES.index(drawing.style) if named else 0
        colour = 1 + _BACKGROUND_NAMES.index(background) if background else 0
        labels.append((drawing.concept_index, style, colour))
        chosen.append((index, BACKGROUNDS[background or "white"]))
    concepts_B, styles_B, backgrounds_B = torch.tensor(labels).unbind(1)
    return CaptionBatch(
        captions=captions,
        concepts_B=concepts_B,
        styles_B=styles_B,
        backgrounds_B=backgrounds_B,
        thumbnails_BCHW=composite(
            small_N4HW[[index for index, _ in chosen]],
            torch.tensor([colour for _, colour in chosen]),
        ),
    )


def text_loss(
    model: CLIPTextModel,
    heads: nn.ModuleDict,
    tokenizer: CLIPTokenizer,
    dataset: Dataset,
    batch: int,
    device: torch.device,
) -> LossFunction:
    """Cross-entropy of concept, style and background, plus the squared error of the thumbnail."""
    small = thumbnails(dataset)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        random = Random(int(torch.randint(2**31, (1,), generator=generator)))
        drawn = draw_batch(dataset, small, batch, random)
        pooled_BD = model(tokenize(tokenizer, drawn.captions).to(device)).pooler_output
        concepts_B = drawn.concepts_B.to(device)
        guesses = heads["concept"](pooled_BD)
        concept = F.cross_entropy(guesses, concepts_B)
        style = F.cross_entropy(heads["style"](pooled_BD), drawn.styles_B.to(device))
        background = F.cross_entropy(heads["background"](pooled_BD), drawn.backgrounds_B.to(device))
        target = drawn.thumbnails_BCHW.flatten(1).to(device)
        thumbnail = F.mse_loss(heads["thumbnail"](pooled_BD).float(), target)
        return concept + 0.3 * style + 0.3 * background + 2.0 * thumbnail, {
            "accuracy": (guesses.argmax(1) == concepts_B).float().mean(),
            "thumbnail": thumbnail,
        }

    return loss


def as_modules(model: CLIPTextModel, heads: nn.ModuleDict) -> dict[str, nn.Module]:
    """The names under which checkpoints hold encoder and heads."""
    return {"text": model, "head": heads}
