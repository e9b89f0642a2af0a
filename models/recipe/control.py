"""Optional stage: a ControlNet that follows edges, beside a denoiser that stays as it is.

Called by the command line. Starts as a copy of the denoiser's encoder (Zhang et al. 2023), and
learns from drawings whose edges it is shown; half of the captions are empty, so that the shape
comes from the edges. Legend: B batch, H and W pixels, h and w latent sides.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from models.recipe.captions import draw_caption
from models.recipe.dataset import Dataset
from models.recipe.denoiser import TIMESTEP_POWER, build_scheduler
from models.recipe.export import SIGNIFICANT_BITS, folder_size, rounded
from models.recipe.heldout import held_out_pairs
from models.recipe.latents import CENTRED, draw_picture, draw_scene
from models.recipe.libraries import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from models.recipe.loop import LossFunction
from models.recipe.tokenizer import tokenize

EMPTY_SHARE = 0.5
EDGE_THRESHOLD = 0.12
"""Of the largest step between neighbouring pixels, in units of the range of colours."""
MAX_SIZE_BYTES = 10_000_000
_EMBEDDING_CHANNELS = (16, 32, 64, 96)
"""One more than the halvings that lead from pixels to latents: three, as the autoencoder's."""


def edges(pictures_B3HW: Tensor) -> Tensor:
    """White where colour changes between neighbours, else black: [B, 3, H, W] of 0 and 1.

    Takes pictures in [-1, 1].
    """
    padded = F.pad(pictures_B3HW, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]).abs()
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]).abs()
    steps = torch.maximum(across, down).amax(1, keepdim=True) / 2.0
    return (steps > EDGE_THRESHOLD).float().expand(-1, 3, -1, -1)


def build_control(denoiser: UNet2DConditionModel) -> ControlNetModel:
    """An untrained ControlNet for `denoiser`, which it copies as far as their layers agree."""
    config = denoiser.config
    control = ControlNetModel(
        in_channels=config.in_channels,
        down_block_types=config.down_block_types,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        addition_embed_type=config.addition_embed_type,
        addition_embed_type_num_heads=config.addition_embed_type_num_heads,
        resnet_time_scale_shift=config.resnet_time_scale_shift,
        conditioning_embedding_out_channels=_EMBEDDING_CHANNELS,
    )
    own = control.state_dict()
    shared = {k: v for k, v in denoiser.state_dict().items() if k in own}
    control.load_state_dict({**own, **shared})
    return control


class Examples:
    """Pictures with captions: every drawing that is not held out, in every kind of scene."""

    def __init__(self, dataset: Dataset) -> None:
        """Leave out what is held out."""
        kept_back = held_out_pairs(dataset.concepts)
        self._dataset = dataset
        self._indexes = [
            index
            for index, drawing in enumerate(dataset.drawings)
            if (drawing.concept_index, drawing.style) not in kept_back
        ]

    def batch(self, count: int, random: Random) -> tuple[Tensor, list[str]]:
        """Pictures [count, 3, 128, 128] in [-1, 1] and captions, half of them empty."""
        pictures, captions = zip(*(self._one(random) for _ in range(count)), strict=True)
        return torch.stack(pictures), list(captions)

    def _one(self, random: Random) -> tuple[Tensor, str]:
        index = random.choice(self._indexes)
        drawing = self._dataset.drawings[index]
        concept = self._dataset.concepts[drawing.concept_index]
        scene = draw_scene(random.choice(CENTRED)[0], concept, None, random)
        view = self._dataset.views[index, random.randrange(self._dataset.views.shape[1])]
        rgba = torch.from_numpy(np.array(view)).float()
        picture = draw_picture(rgba, drawing.style, scene)
        empty = random.random() < EMPTY_SHARE
        return picture, "" if empty else draw_caption(concept, drawing.style, scene, random)


def control_loss(
    control: ControlNetModel,
    denoiser: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    autoencoder: AutoencoderTiny,
    tokenizer: CLIPTokenizer,
    dataset: Dataset,
    scale: float,
    batch: int,
    device: torch.device,
) -> LossFunction:
    """The denoiser's loss with the ControlNet's help; only the ControlNet learns."""
    examples = Examples(dataset)
    alphas_cumprod = build_scheduler().alphas_cumprod.to(device)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        random = Random(int(torch.randint(2**31, (1,), generator=generator)))
        pictures, captions = examples.batch(batch, random)
        pictures = pictures.to(device)
        with torch.no_grad():
            x = autoencoder.encoder(pictures).float() * scale
            context = text_encoder(tokenize(tokenizer, captions).to(device))[0]
        share = torch.rand(batch, generator=generator) ** TIMESTEP_POWER
        t = (len(alphas_cumprod) * share).long().clamp(max=len(alphas_cumprod) - 1).to(device)
        epsilon = torch.randn(x.shape, generator=generator).to(device)
        abar = alphas_cumprod[t][:, None, None, None]
        signal, noise = abar.sqrt(), (1.0 - abar).sqrt()
        noisy = signal * x + noise * epsilon
        down, middle = control(
            noisy, t, context, controlnet_cond=edges(pictures), return_dict=False
        )
        output = denoiser(
            noisy,
            t,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample.float()
        return F.mse_loss(output, signal * epsilon - noise * x), {}

    return loss


def as_modules(control: ControlNetModel) -> dict[str, nn.Module]:
    """The name under which checkpoints hold the ControlNet."""
    return {"control": control}


def control_folder(model: Path) -> Path:
    """Where the ControlNet of the model in the folder `model` lies: beside it."""
    return model.with_name(f"{model.name}-edges")


def export_control(control: ControlNetModel, folder: Path) -> None:
    """Write it in float16 and diffusers layout; ValueError if that is more than 10 MB."""
    control.half()
    for parameter in control.parameters():
        parameter.data = rounded(parameter.data, SIGNIFICANT_BITS)
    control.save_pretrained(folder, safe_serialization=True)
    for path in folder.iterdir():
        path.chmod(0o644)
    size = folder_size(folder)
    if size > MAX_SIZE_BYTES:
        raise ValueError(f"the ControlNet takes {size} bytes, more than {MAX_SIZE_BYTES}")
