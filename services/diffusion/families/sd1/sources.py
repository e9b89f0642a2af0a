"""The components of a Stable Diffusion 1.x model as graph sources, ready to run or to export.

Shape legend: B rows, C latent channels, h and w latent sides, L tokens, D text width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from services.diffusion.families.sd1.components import (
    Decoder,
    Denoiser,
    TextEncoder,
    load_components,
)
from services.diffusion.families.sd1.layout import LATENT_CHANNEL_COUNT, Layout, read_layout
from services.graphs.graph import Calibration, GraphSource
from services.graphs.shapes import ShapeRange

_USUAL_ROWS, _MOST_ROWS = 8, 32
"""Rows of a call that an engine is made fastest for, and the most that it takes at once."""


def engine_sources(folder: Path) -> tuple[GraphSource, ...]:
    """What a server with TensorRT compiles for the model in `folder`. Raises `ModelLoadError`."""
    layout = read_layout(folder)
    parts = load_components(layout)
    return (
        denoiser_source(layout, parts.unet),
        decoder_source(layout, parts.vae),
        text_encoder_source(layout, parts.text_encoder),
    )


def denoiser_source(
    layout: Layout, unet: nn.Module, calibration: Calibration | None = None
) -> GraphSource:
    """Latents (B, C, h, w), timesteps (B,) and context (B, L, D) to raw output (B, C, h, w)."""
    native_side = layout.native_side // layout.vae_scale
    return GraphSource(
        name="denoiser",
        revision=layout.revision,
        module=Denoiser(unet),
        input_names=("latents", "timesteps", "context"),
        example_inputs=(
            _example_latents(layout),
            torch.tensor([1.0, 500.5, 999.0]),
            torch.zeros(3, layout.token_window, layout.text_width),
        ),
        dynamic_axes=(frozenset({0, 2, 3}), frozenset({0}), frozenset({0})),
        precisions=frozenset({"float32", "bfloat16", "float16"}),
        row_shapes=(
            (LATENT_CHANNEL_COUNT, native_side, native_side),
            (),
            (layout.token_window, layout.text_width),
        ),
        calibration=calibration,
        shape_ranges=(
            _latents_range(layout),
            _rows_range(),
            _rows_range(layout.token_window, layout.text_width),
        ),
    )


def decoder_source(
    layout: Layout, vae: nn.Module, calibration: Calibration | None = None
) -> GraphSource:
    """Latents (B, C, h, w) to uint8 pictures (B, H, W, 3)."""
    return GraphSource(
        name="decoder",
        revision=layout.revision,
        module=Decoder(vae),
        input_names=("latents",),
        example_inputs=(_example_latents(layout),),
        dynamic_axes=(frozenset({0, 2, 3}),),
        # At most two levels of 255 off, and twice as fast; float16 can overflow in a decoder.
        precisions=frozenset({"float32", "bfloat16"}),
        calibration=calibration,
        shape_ranges=(_latents_range(layout),),
    )


def text_encoder_source(layout: Layout, text_encoder: nn.Module) -> GraphSource:
    """Token ids (1, L) to embeddings (1, L, D): prompts are encoded one by one."""
    return GraphSource(
        name="text_encoder",
        revision=layout.revision,
        module=TextEncoder(text_encoder),
        input_names=("ids",),
        example_inputs=(torch.zeros((1, layout.token_window), dtype=torch.int64),),
        dynamic_axes=(frozenset(),),
        shape_ranges=(_fixed_range(1, layout.token_window),),
    )


def _latents_range(layout: Layout) -> ShapeRange:
    """From the smallest picture alone to many of the largest, see `offer`."""
    native = layout.native_side // layout.vae_scale
    least = min(native, layout.side_multiple // layout.vae_scale)
    return ShapeRange(
        smallest=(1, LATENT_CHANNEL_COUNT, least, least),
        usual=(_USUAL_ROWS, LATENT_CHANNEL_COUNT, native, native),
        largest=(_MOST_ROWS, LATENT_CHANNEL_COUNT, 2 * native, 2 * native),
    )


def _rows_range(*row: int) -> ShapeRange:
    return ShapeRange(smallest=(1, *row), usual=(_USUAL_ROWS, *row), largest=(_MOST_ROWS, *row))


def _fixed_range(*shape: int) -> ShapeRange:
    return ShapeRange(smallest=shape, usual=shape, largest=shape)


def _example_latents(layout: Layout) -> Tensor:
    """Sides that differ, so that the exporter does not take them for one and the same."""
    coarse = layout.side_multiple // layout.vae_scale
    return torch.zeros(3, LATENT_CHANNEL_COUNT, 2 * coarse, 3 * coarse)
