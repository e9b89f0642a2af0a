"""Stage 5: the denoiser learns to paint what the text encoder says.

Called by the command line; `export` builds the same modules. The text encoder stays as it is: at
the denoiser's rate it would forget what its slots were taught before anybody can read them.
v-prediction on a scaled-linear schedule (Salimans & Ho 2022, appendix D). Legend: B batch, L
tokens, D text width, C channels, h and w latent sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from models.recipe.dataset import IMAGE_SIZE
from models.recipe.draws import Draws, LatentBatch
from models.recipe.libraries import AttnProcessor, DDIMScheduler, UNet2DConditionModel
from models.recipe.loop import LossFunction
from models.recipe.text import TEXT_WIDTH

TIMESTEP_POWER = 0.75
"""Timesteps are drawn as T · u^0.75: a little more noise than uniform."""
MISLED_SHARE = 0.4
"""Captions that are another picture's, where there is no noise; none from `MISLED_BELOW` on.

So where much can be seen it counts for more than what is said, and a low strength keeps a picture.
"""
MISLED_BELOW = 0.6
"""A share of the schedule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How a kind of machine trains; `batch` is for all its processes together.

    `watch_every` counts steps, `snapshot_every` samples.
    """

    batch: int
    learning_rate: float
    ema_decay: float
    cooldown: float
    caption_count: int
    watch_every: int
    snapshot_every: int


ON_CPU = Training(
    batch=64,
    learning_rate=1e-3,
    ema_decay=0.999,
    cooldown=0.5,
    caption_count=4,
    watch_every=250,
    snapshot_every=50_000,
)
ON_GPU = Training(
    batch=512,
    learning_rate=2e-3,
    ema_decay=0.998,
    cooldown=0.5,
    caption_count=2,
    watch_every=500,
    snapshot_every=1_000_000,
)
"""Not tried yet."""


def build_denoiser() -> UNet2DConditionModel:
    """An untrained UNet, 7.6 M parameters; pooled text joins the time embedding."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=32,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule, as the pipeline keeps it."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.02,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        # Ignored with trailing timesteps; diffusers warns of any other value.
        steps_offset=1,
    )


def denoiser_loss(
    denoiser: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    draws: Draws,
    batch: int,
    device: torch.device,
) -> LossFunction:
    """Mean squared error of v = sqrt(abar) ε - sqrt(1 - abar) x."""
    noising = Noising(device)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        local = torch.Generator(device)
        local.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        drawn = draws.batch(batch, local)
        share = torch.rand(batch, generator=local, device=device) ** TIMESTEP_POWER
        noise = torch.randn(drawn.latents_BChw.shape, generator=local, device=device)
        drawn = _mislead(drawn, share, local)
        return noising.error(denoiser, text_encoder, drawn, share, noise), {}

    return loss


def _mislead(drawn: LatentBatch, share_B: Tensor, generator: torch.Generator) -> LatentBatch:
    """Give some pictures the caption of their neighbour, the fewer the more noise there is."""
    rates_B = MISLED_SHARE * (1.0 - share_B / MISLED_BELOW)
    misled_B = torch.rand(rates_B.shape, generator=generator, device=rates_B.device) < rates_B
    others_BL = drawn.tokens_BL.roll(1, 0)
    return replace(drawn, tokens_BL=torch.where(misled_B[:, None], others_BL, drawn.tokens_BL))


class Noising:
    """The forward process and what the denoiser should answer."""

    def __init__(self, device: torch.device) -> None:
        """Keep the schedule on `device`."""
        self._alphas_cumprod = build_scheduler().alphas_cumprod.to(device)

    def error(
        self,
        denoiser: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        drawn: LatentBatch,
        share_B: Tensor,
        noise_BChw: Tensor,
    ) -> Tensor:
        """Mean squared error at timesteps that lie at a share, 0 to 1, of the schedule.

        Only of what the captions speak of.
        """
        step_count = len(self._alphas_cumprod)
        t = (step_count * share_B).long().clamp(max=step_count - 1)
        abar = self._alphas_cumprod[t][:, None, None, None]
        signal, noise = abar.sqrt(), (1.0 - abar).sqrt()
        x = drawn.latents_BChw
        with torch.no_grad():
            context_BLD = text_encoder(drawn.tokens_BL)[0]
        output = denoiser(signal * x + noise * noise_BChw, t, context_BLD).sample.float()
        error = F.mse_loss(output, signal * noise_BChw - noise * x, reduction="none")
        return (error * drawn.own_B1hw).mean() / drawn.own_B1hw.float().mean()


def make_fast(
    denoiser: UNet2DConditionModel, text_encoder: CLIPTextModel, device: torch.device
) -> None:
    """Prepare both for training, in place.

    On a CPU plain attention gives a quarter more samples than the fused kernel, and compiling does
    not pay; on a GPU both are compiled.
    """
    if device.type == "cuda":
        denoiser.compile()
        text_encoder.compile()
    else:
        denoiser.set_attn_processor(AttnProcessor())
        text_encoder.set_attn_implementation("eager")


def as_modules(denoiser: UNet2DConditionModel) -> dict[str, nn.Module]:
    """The name under which checkpoints hold the denoiser."""
    return {"unet": denoiser}
