"""Prompts as a denoiser is told of them, encoded as the stock pipeline of each family does.

Used by the learner, and for samples. What is never trained is encoded once for every prompt, and
its encoder let go.

Shape legend: B rows, L tokens, D text width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from services.trainer.run.components import Components

_T5_WINDOW = 256
"""Tokens, the default of the stock pipeline."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Text:
    """What a denoiser is told of B prompts."""

    embeddings_BLD: Tensor
    pooled_BP: Tensor | None = None
    """SDXL and SD3."""

    @classmethod
    def join(cls, rows: Sequence[Text]) -> Text:
        """Several after one another."""
        pooled = [row.pooled_BP for row in rows if row.pooled_BP is not None]
        return cls(
            embeddings_BLD=torch.cat([row.embeddings_BLD for row in rows]),
            pooled_BP=torch.cat(pooled) if pooled else None,
        )


class PromptEncoder:
    """Encodes prompts of one run; `cached`: each once, for the text encoders are not trained."""

    def __init__(self, components: Components, device: torch.device, *, cached: bool) -> None:
        self._components, self._device, self._cached = components, device, cached
        self._texts: dict[str, Text] = {}
        self._third: dict[str, Tensor] = {}
        """By prompt, what the text encoder that is never trained makes of it, (1, L, D)."""

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode what can be encoded beforehand, and let go of encoders that were needed for it."""
        listed = sorted(set(prompts))
        optional = self._components.base.optional_text_part
        if optional is not None:
            for prompt in listed:
                self._third_of(prompt)
            self._components.drop(optional)
        if self._cached:
            self(listed)
            self._components.drop(*self._components.base.text_parts)

    def __call__(self, prompts: Sequence[str]) -> Text:
        """The text of B prompts."""
        if not self._cached:
            return self._encode(prompts)
        for prompt in set(prompts) - self._texts.keys():
            with torch.no_grad():
                self._texts[prompt] = self._encode([prompt])
        return Text.join([self._texts[prompt] for prompt in prompts])

    def _encode(self, prompts: Sequence[str]) -> Text:
        """SD 1.x: the last hidden state. SDXL: the last but one of both encoders, joined, and the
        second's projection; zeros for empty prompts where the model wants those. SD3: the same of
        both, both projections, and T5's tokens after theirs."""
        base = self._components.base
        encoders: list[Any] = [
            self._components.part(part).to(self._device) for part in base.parts.text_parts
        ]
        ids = [
            _tokenize(tokenizer, prompts).to(self._device)
            for tokenizer in self._components.tokenizers[: len(encoders)]
        ]
        if base.family == "sd1":
            return Text(embeddings_BLD=cast(Tensor, encoders[0](ids[0]).last_hidden_state))
        outputs = [
            encoder(ids_BL, output_hidden_states=True)
            for encoder, ids_BL in zip(encoders, ids, strict=True)
        ]
        embeddings = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        if base.family == "sd3":
            third = torch.cat([self._third_of(prompt) for prompt in prompts])
            widened = F.pad(embeddings, (0, third.shape[-1] - embeddings.shape[-1]))
            return Text(
                embeddings_BLD=torch.cat([widened, third.to(widened)], dim=-2),
                pooled_BP=torch.cat([output.text_embeds for output in outputs], dim=-1),
            )
        pooled = cast(Tensor, outputs[-1].text_embeds)
        if base.zeroes_empty_prompts:
            kept = torch.tensor([float(prompt != "") for prompt in prompts], device=self._device)
            embeddings, pooled = embeddings * kept[:, None, None], pooled * kept[:, None]
        return Text(embeddings_BLD=embeddings, pooled_BP=pooled)

    @torch.no_grad()
    def _third_of(self, prompt: str) -> Tensor:
        """T5's tokens; zeros, as in the stock pipeline, for a model without it."""
        if prompt not in self._third:
            self._third[prompt] = self._encode_third(prompt)
        return self._third[prompt]

    def _encode_third(self, prompt: str) -> Tensor:
        components, part = self._components, self._components.base.optional_text_part
        if part is None:
            width = components.base.text_width or 0
            return torch.zeros((1, _T5_WINDOW, width), device=self._device)
        ids = _tokenize(components.tokenizers[-1], [prompt], window=_T5_WINDOW)
        encoder: Any = components.part(part).to(self._device)
        return cast(Tensor, encoder(ids.to(self._device))[0])


def _tokenize(tokenizer: Any, prompts: Sequence[str], *, window: int | None = None) -> Tensor:
    """Token ids (B, L), padded to the window; what does not fit is cut."""
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=window or tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return cast(Tensor, tokens.input_ids)


def common_word(tokenizer: Any, token: str) -> bool:
    """Whether the tokenizer knows `token` as one of its frequent words.

    Tokens are numbered by how early they were merged, hence by frequency; of CLIP's 49,408 the
    customary `sks` is number 48,136.
    """
    ids = tokenizer(token, add_special_tokens=False).input_ids
    return len(ids) == 1 and ids[0] < 0.9 * len(tokenizer) and ids[0] >= 512
