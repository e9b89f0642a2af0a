"""The tokenizer: byte-pair encoding in CLIP's format, learnt from the captions, and a token a name.

Called by the command line once; `text`, `denoiser` and `export` load the result. Every byte is in
the vocabulary, so that no prompt has an unknown token. Every name of a thing is one token, the
longest that fits: "red apple", "two apples". Does not know what else a caption means.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from random import Random

import torch
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTokenizer

from models.recipe.captions import STYLES, Concept, draw_any_scene, draw_caption, name_owners

TOKEN_WINDOW = 48
"""Tokens that the text encoder reads, markers and padding included."""
MAX_WORD_COUNT = 1000
NO_CONCEPT = -1
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
    names = name_owners(concepts)
    vocabulary, merges = _train_merges(captions, set(names))
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]
        model_max_length=TOKEN_WINDOW,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        unk_token=_END,
    )
    _add_names(tokenizer, names)
    tokenizer.save_pretrained(folder)


def add_new_names(concepts: Sequence[Concept], folder: Path) -> None:
    """Give a token to every name that the tokenizer in `folder` lacks; all others stay."""
    tokenizer = load_tokenizer(folder)
    if missing := [n for n in name_owners(concepts) if n not in tokenizer.get_added_vocab()]:
        _add_names(tokenizer, missing)
        tokenizer.save_pretrained(folder)


def _add_names(tokenizer: CLIPTokenizer, names: Iterable[str]) -> None:
    tokenizer.add_tokens([AddedToken(n, single_word=True, normalized=True) for n in names])


def owners_of(tokenizer: CLIPTokenizer, concepts: Sequence[Concept]) -> Tensor:
    """The index of the concept that each token names, -1 for words: int64 [vocabulary].

    Raises ValueError when a name has no token.
    """
    known, added = name_owners(concepts), tokenizer.get_added_vocab()
    if missing := sorted(known.keys() - added.keys()):
        raise ValueError(f"no token for {', '.join(missing)}: run the stage `data`")
    owners = torch.full((len(tokenizer),), NO_CONCEPT)
    for name, concept in known.items():
        owners[added[name]] = concept
    return owners


def _train_merges(
    captions: Sequence[str], names: Set[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of which none makes a name, as that would be its token, too."""
    stock = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix=_WORD_END, unk_token=_END))
    learner.normalizer, learner.pre_tokenizer = stock.normalizer, stock.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Named here so that their ids, and with them the choice between equally frequent merges, do
    # not depend on the order in which the trainer's hash map gives out words.
    final_bytes = [byte + _WORD_END for byte in sorted(alphabet)]
    trainer = BpeTrainer(
        vocab_size=MAX_WORD_COUNT,
        min_frequency=2,
        special_tokens=[_START, _END, *final_bytes],
        end_of_word_suffix=_WORD_END,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    model = json.loads(learner.to_str())["model"]
    dropped: set[str] = set()
    merges: list[tuple[str, str]] = []
    for left, right in model["merges"]:
        if left + right in names or {left, right} & dropped:
            dropped.add(left + right)
        else:
            merges.append((left, right))
    dropped -= {left + right for left, right in merges}
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    kept = [word for word in words if word not in dropped]
    return {word: place for place, word in enumerate(kept)}, merges


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Read what `train_tokenizer` wrote."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids of `captions`, cut and padded to the window as the pipeline does: int64 [B, L]."""
    ids: Tensor = tokenizer(
        list(captions),
        padding="max_length",
        truncation=True,
        max_length=TOKEN_WINDOW,
        return_tensors="pt",
    ).input_ids
    assert ids.dtype == torch.int64
    return ids
