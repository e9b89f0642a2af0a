"""A Stable Diffusion 1.x model, loaded: the family's `LoadedModel`.

`load` puts the pieces together; the class only drives graphs. Which runtime computes is the
business of `graphs`, which steps to take that of the samplers and the batcher.

Shape legend: as in `services.diffusion.model`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor

from services.diffusion.conditioning import PromptTokenizer, TextConditioner
from services.diffusion.families.card import ModelCard, read_card, vocabulary_of
from services.diffusion.families.sd1.calibration import RECIPE, CalibrationRuns
from services.diffusion.families.sd1.components import (
    Components,
    encode_pictures,
    load_components,
)
from services.diffusion.families.sd1.layout import LATENT_CHANNEL_COUNT, Layout, read_layout
from services.diffusion.families.sd1.offer import Offer, make_offer
from services.diffusion.families.sd1.sources import (
    decoder_source,
    denoiser_source,
    text_encoder_source,
)
from services.diffusion.model import (
    ImageDefaults,
    ImageLimits,
    ModelSpec,
    Notice,
    UInt8Array,
    Vocabulary,
)
from services.diffusion.previews import LatentPreview, fit
from services.diffusion.schedule import NoiseSchedule
from services.diffusion.vocabulary import WordList, describe
from services.graphs.graph import Calibration, Graph
from services.graphs.selection import (
    GraphOptions,
    available_core_count,
    open_graph,
    resolve_device,
)
from services.graphs.store import GraphStore

# Latent sides of the pictures that the preview map is fitted to.
_PREVIEW_SIDE = 8
# Decoder calls are warmed up for this many rows at most; more rows are decoded in slices.
_MAX_DECODED_ROWS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Graphs:
    denoiser: Graph
    decoder: Graph
    text_encoder: Graph


class StableDiffusion1:
    """A loaded model; see `LoadedModel` for the contract of every attribute and method."""

    family = "sd1"

    def __init__(
        self,
        *,
        spec: ModelSpec,
        layout: Layout,
        card: ModelCard,
        offer: Offer,
        device: str,
        graphs: _Graphs,
        tokenizer: PromptTokenizer,
        latent_preview: LatentPreview,
    ) -> None:
        self.name = spec.name
        self.display_name = card.display_name or spec.name
        self.description = card.description
        self.license = card.license
        self.revision = layout.revision
        self.schedule: NoiseSchedule = layout.schedule
        self.limits: ImageLimits = offer.limits
        self.defaults: ImageDefaults = offer.defaults
        self.samplers = offer.samplers
        self.max_batch_rows = offer.max_batch_rows
        self.vocabulary: Vocabulary | None = vocabulary_of(card)
        self.device = device
        self.runtimes: Mapping[str, str] = MappingProxyType(
            {
                "denoiser": graphs.denoiser.runtime,
                "decoder": graphs.decoder.runtime,
                "text_encoder": graphs.text_encoder.runtime,
            }
        )
        self._vae_scale = layout.vae_scale
        self._graphs = graphs
        self._tokenizer = tokenizer
        self._word_list = WordList(self.vocabulary, card.words) if self.vocabulary else None
        self._conditioner = TextConditioner(
            tokenizer, graphs.text_encoder, revision=layout.revision, device=device
        )
        self._latent_preview = latent_preview

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape (C, h, w) of the latent of a picture of `width` × `height` pixels."""
        return LATENT_CHANNEL_COUNT, height // self._vae_scale, width // self._vae_scale

    def prompt_notices(self, prompt: str, *, field: str = "prompt") -> list[Notice]:
        """Remarks about words that the model never saw or that its text encoder cuts off."""
        notices = []
        unknown = self._word_list.unknown_words(prompt) if self._word_list else []
        if unknown:
            notices.append(Notice(code="UNKNOWN_WORDS", message=describe(unknown), field=field))
        cut = self._tokenizer.cut_text(prompt)
        if cut:
            message = f"The prompt is longer than this model reads; it will not see '{cut}'."
            notices.append(Notice(code="PROMPT_TRUNCATED", message=message, field=field))
        return notices

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts into (N, L, D) float32; recent ones come from a cache."""
        return self._conditioner.encode(prompts)

    def denoise(self, latents_BChw: Tensor, timesteps_B: Tensor, context_BLD: Tensor) -> Tensor:
        """One call of the UNet, each row at its own timestep: raw output (B, C, h, w) float32."""
        return self._graphs.denoiser(
            latents_BChw.contiguous(), timesteps_B.contiguous(), context_BLD.contiguous()
        )

    def decode(self, latents_BChw: Tensor) -> UInt8Array:
        """Decode finished latents into pictures (B, H, W, 3)."""
        slices = torch.split(latents_BChw.contiguous(), _MAX_DECODED_ROWS)
        pixels = torch.cat([self._graphs.decoder(rows) for rows in slices])
        return cast(UInt8Array, pixels.cpu().numpy())

    def preview(self, latents_BChw: Tensor) -> UInt8Array:
        """Rough pictures (B, h × 4, w × 4, 3) of estimated clean latents, without the decoder."""
        return self._latent_preview.draw(latents_BChw)

    def warm_up(self) -> None:
        """Run every graph once for every row count that it computes, at the default size."""
        shape = self.latent_shape(self.defaults.width, self.defaults.height)
        context = self.encode_prompts([""])
        for row_count in self._graphs.denoiser.piece_sizes or range(1, self.max_batch_rows + 1):
            latents = torch.zeros((row_count, *shape), device=self.device)
            timesteps = torch.zeros(row_count, device=self.device)
            self.denoise(latents, timesteps, context.expand(row_count, -1, -1))
        for row_count in range(1, min(self.max_batch_rows, _MAX_DECODED_ROWS) + 1):
            self.decode(torch.zeros((row_count, *shape), device=self.device))
        self.preview(torch.zeros((1, *shape), device=self.device))


def load(spec: ModelSpec, folder: Path) -> StableDiffusion1:
    """Load the model in `folder`.

    Raises `ModelLoadError` for the model's own faults and `GraphError` for the machine's.
    """
    if spec.thread_count:
        torch.set_num_threads(spec.thread_count)
    layout = read_layout(folder)
    card = read_card(folder)
    device = resolve_device(spec.device, spec.runtime)
    offer = make_offer(layout, card, device=device)
    parts = load_components(layout)
    latent_preview = _fit_preview(parts, layout)
    return StableDiffusion1(
        spec=spec,
        layout=layout,
        card=card,
        offer=offer,
        device=device,
        graphs=_open_graphs(
            parts,
            layout,
            CalibrationRuns(parts, layout, card, offer.defaults),
            _graph_options(spec, device),
        ),
        tokenizer=PromptTokenizer(parts.tokenizer, window=layout.token_window),
        latent_preview=latent_preview.to(device),
    )


def _graph_options(spec: ModelSpec, device: str) -> GraphOptions:
    return GraphOptions(
        runtime=spec.runtime,
        device=device,
        thread_count=spec.thread_count or available_core_count(),
        store=GraphStore(spec.cache_dir / "graphs"),
        compiled=spec.compiled,
        eight_bit=spec.precision == "int8",
    )


def _fit_preview(parts: Components, layout: Layout) -> LatentPreview:
    def encode(pictures: Tensor) -> Tensor:
        return encode_pictures(parts.vae, pictures)

    return fit(encode, side=_PREVIEW_SIDE * layout.vae_scale)


def _open_graphs(
    parts: Components, layout: Layout, runs: CalibrationRuns, options: GraphOptions
) -> _Graphs:
    denoiser = denoiser_source(
        layout, parts.unet, Calibration(recipe=RECIPE, inputs=runs.denoiser_inputs)
    )
    decoder = decoder_source(
        layout, parts.vae, Calibration(recipe=RECIPE, inputs=runs.decoder_inputs)
    )
    return _Graphs(
        denoiser=open_graph(denoiser, options),
        decoder=open_graph(decoder, options),
        text_encoder=open_graph(text_encoder_source(layout, parts.text_encoder), options),
    )
