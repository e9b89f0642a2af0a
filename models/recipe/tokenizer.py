"""The tokenizer: byte-pair encoding in CLIP's format, learnt from the captions themselves.

Called by the command line once; `text`, `denoiser` and `export` load the result. Every byte is in
the vocabulary, so that no prompt has an unknown token. Does not know what a caption means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTokenizer

from models.recipe.captions import STYLES, Concept, draw_any_scene, draw_caption

TOKEN_WINDOW = 32
"""Tokens that the text encoder reads, the two markers included."""
MAX_VOCABULARY_SIZE = 2200
CAPTIONS_PER_DRAWING = 20

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def train_tokenizer(concepts: Sequence[Concept], folder: Path, *, seed: int = 1) -> None:
    """Learn merges from random captions of every drawing and write the tokenizer to `folder`.

    Start, end and padding are set explicitly: the encoder pools at the first end marker.
    """
    random = Random(seed)
    captions = [
        draw_caption(concept, style, draw_any_scene(concept, random), random).lower()
        for _ in range(CAPTIONS_PER_DRAWING)
        for concept in concepts
        for style in STYLES
    ]
    vocabulary, merges = _train_merges(captions)
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]
        model_max_length=TOKEN_WINDOW,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        unk_token=_END,
    )
    tokenizer.save_pretrained(folder)


def _train_merges(captions: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    stock = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix=_WORD_END, unk_token=_END))
    learner.normalizer, learner.pre_tokenizer = stock.normalizer, stock.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Named here so that their ids, and with them the choice between equally frequent merges, do
    # not depend on the order in which the trainer's hash map gives out words.
    final_bytes = [byte + _WORD_END for byte in sorted(alphabet)]
    trainer = BpeTrainer(
        vocab_size=MAX_VOCABULARY_SIZE,
        min_frequency=2,
        special_tokens=[_START, _END, *final_bytes],
        end_of_word_suffix=_WORD_END,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Read what `train_tokenizer` wrote."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids of `captions`, cut and padded to the window as the pipeline does: int64 [B, 32]."""
    ids: Tensor = tokenizer(
        list(captions),
        padding="max_length",
        truncation=True,
        max_length=TOKEN_WINDOW,
        return_tensors="pt",
    ).input_ids
    assert ids.dtype == torch.int64
    return ids
