"""Prompts to text embeddings: tokens, the encoder's window, and a cache of recent results.

A model family owns one `PromptTokenizer` (any thread) and one `TextConditioner` (device thread).
Guidance and packing are the batcher's.

Shape legend: N prompts, L tokens in the encoder's window, D text width.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from services.graphs.graph import Graph

DEFAULT_CACHED_PROMPTS = 1024
DEFAULT_CACHED_BYTES = 64 * 2**20


class PromptTokenizer:
    """A tokenizer that any thread may use.

    The tokenizer underneath keeps padding and truncation as state and fails with "Already
    borrowed" when two threads meet in it. Here one lock guards it, and neither is ever set.
    """

    def __init__(self, tokenizer: Any, *, window: int) -> None:
        """Wrap a fast tokenizer of transformers; `window` is L, the markers included."""
        self._tokenizer = tokenizer
        self._window = window
        self._lock = threading.Lock()

    def ids(self, prompt: str) -> list[int]:
        """Token ids (L,): begin, prompt cut to fit, end, padding; as the stock pipeline pads."""
        body = self._body(prompt).input_ids[: self._window - 2]
        ids = [self._tokenizer.bos_token_id, *body, self._tokenizer.eos_token_id]
        return ids + [self._tokenizer.pad_token_id] * (self._window - len(ids))

    def cut_text(self, prompt: str) -> str:
        """Words at the end of `prompt` that do not fit, or not wholly; empty if all of it does."""
        body = self._body(prompt)
        room = self._window - 2
        if len(body.input_ids) <= room:
            return ""
        start = body.offset_mapping[room][0]
        while start > 0 and not prompt[start - 1].isspace():
            start -= 1
        return prompt[start:].strip()

    def _body(self, prompt: str) -> Any:
        with self._lock:
            return self._tokenizer(
                prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )


class TextConditioner:
    """Encodes prompts one by one, so that no embedding depends on its neighbours, and keeps them.

    The cache drops the least recently used embeddings beyond a count and a size.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        encoder: Graph,
        *,
        revision: str,
        device: str,
        max_cached_prompts: int = DEFAULT_CACHED_PROMPTS,
        max_cached_bytes: int = DEFAULT_CACHED_BYTES,
    ) -> None:
        """`encoder` takes token ids (1, L) int64 and returns embeddings (1, L, D)."""
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._revision = revision
        self._device = device
        self._max_cached_prompts = max_cached_prompts
        self._max_cached_bytes = max_cached_bytes
        self._cache: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._cached_bytes = 0

    @property
    def cached_bytes(self) -> int:
        """Size of all embeddings in the cache."""
        return self._cached_bytes

    def __len__(self) -> int:
        """Count the embeddings in the cache."""
        return len(self._cache)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (N, L, D) float32, a fresh tensor; N must not be 0."""
        return torch.stack([self._embedding(prompt) for prompt in prompts])

    def _embedding(self, prompt: str) -> Tensor:
        key = (self._revision, prompt)
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            return cached
        ids = torch.tensor([self._tokenizer.ids(prompt)], device=self._device)
        embedding = self._encoder(ids)[0]
        self._remember(key, embedding)
        return embedding

    def _remember(self, key: tuple[str, str], embedding: Tensor) -> None:
        self._cache[key] = embedding
        self._cached_bytes += embedding.nbytes
        while (
            len(self._cache) > self._max_cached_prompts
            or self._cached_bytes > self._max_cached_bytes
        ):
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
