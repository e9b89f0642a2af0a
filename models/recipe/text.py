"""Stage 2: the text encoder learns what captions mean before the denoiser has to.

Called by the command line. From the state at the end marker, linear heads name concept, style,
background, colour and layout, and paint a thumbnail of the drawing. The heads are thrown away.
Legend: B batch, D text width, C colours, H and W pixels of the thumbnail.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.recipe.captions import (
    BACKGROUNDS,
    LAYOUTS,
    OBJECT_COLOURS,
    STYLES,
    draw_any_scene,
    draw_caption,
)
from models.recipe.dataset import Dataset, composite
from models.recipe.heldout import held_out_pairs
from models.recipe.loop import LossFunction
from models.recipe.tokenizer import TOKEN_WINDOW, tokenize

TEXT_WIDTH = 192
THUMBNAIL_SIZE = 16

_HEADS: dict[str, tuple[str, ...]] = {
    "style": STYLES,
    "background": tuple(BACKGROUNDS),
    "colour": OBJECT_COLOURS,
    "layout": tuple(LAYOUTS)[1:],
}
"""What captions may say beside the thing; class 0 of each head means unsaid."""


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
    """Linear probes of the pooled state; class 0 means unnamed, but for the concept."""
    sizes = {name: 1 + len(classes) for name, classes in _HEADS.items()}
    sizes |= {"concept": concept_count, "thumbnail": 3 * THUMBNAIL_SIZE**2}
    return nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, size) for name, size in sizes.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionBatch:
    """Captions and what they say; `labels_B` has a class per caption for each head."""

    captions: list[str]
    labels_B: dict[str, Tensor]
    thumbnails_BCHW: Tensor


def thumbnails(dataset: Dataset) -> Tensor:
    """The centred view of every drawing, averaged down: float32 RGBA [drawing, 4, 16, 16]."""
    centred = torch.from_numpy(np.array(dataset.views[:, 0])).float()
    return F.avg_pool2d(centred, centred.shape[-1] // THUMBNAIL_SIZE)


def draw_batch(dataset: Dataset, small_N4HW: Tensor, count: int, random: Random) -> CaptionBatch:
    """Random captions of random drawings that are not held out; half name the style."""
    held_out = held_out_pairs(dataset.concepts)
    captions: list[str] = []
    labels, chosen = [], []
    while len(captions) < count:
        index = random.randrange(len(dataset.drawings))
        drawing = dataset.drawings[index]
        if (drawing.concept_index, drawing.style) in held_out:
            continue
        named = random.random() < 0.5
        concept = dataset.concepts[drawing.concept_index]
        scene = draw_any_scene(concept, random)
        captions.append(draw_caption(concept, drawing.style, scene, random, style_named=named))
        said = {
            "style": drawing.style if named else None,
            "background": scene.background,
            "colour": scene.colour,
            "layout": scene.layout,
        }
        labels.append([drawing.concept_index, *(_class_of(k, said[k]) for k in _HEADS)])
        chosen.append((index, BACKGROUNDS[scene.background or "white"]))
    columns = torch.tensor(labels).unbind(1)
    return CaptionBatch(
        captions=captions,
        labels_B=dict(zip(("concept", *_HEADS), columns, strict=True)),
        thumbnails_BCHW=composite(
            small_N4HW[[index for index, _ in chosen]],
            torch.tensor([colour for _, colour in chosen]),
        ),
    )


def _class_of(head: str, name: str | None) -> int:
    return 1 + _HEADS[head].index(name) if name in _HEADS[head] else 0


def text_loss(
    model: CLIPTextModel,
    heads: nn.ModuleDict,
    tokenizer: CLIPTokenizer,
    dataset: Dataset,
    batch: int,
    device: torch.device,
) -> LossFunction:
    """Cross-entropy of all that captions say, plus the squared error of the thumbnail."""
    small = thumbnails(dataset)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        random = Random(int(torch.randint(2**31, (1,), generator=generator)))
        drawn = draw_batch(dataset, small, batch, random)
        pooled_BD = model(tokenize(tokenizer, drawn.captions).to(device)).pooler_output
        labels = {name: classes.to(device) for name, classes in drawn.labels_B.items()}
        guesses = {name: heads[name](pooled_BD).float() for name in labels}
        errors = {name: F.cross_entropy(guesses[name], labels[name]) for name in labels}
        target = drawn.thumbnails_BCHW.flatten(1).to(device)
        thumbnail = F.mse_loss(heads["thumbnail"](pooled_BD).float(), target)
        others = sum((errors[name] for name in _HEADS), torch.zeros((), device=device))
        right = guesses["concept"].argmax(1) == labels["concept"]
        return errors["concept"] + 0.3 * others + 2.0 * thumbnail, {
            "accuracy": right.float().mean(),
            "others": others,
            "thumbnail": thumbnail,
        }

    return loss


def as_modules(model: CLIPTextModel, heads: nn.ModuleDict) -> dict[str, nn.Module]:
    """The names under which checkpoints hold encoder and heads."""
    return {"text": model, "head": heads}
