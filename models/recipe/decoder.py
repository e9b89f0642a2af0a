"""Optional stage: polishes the decoder alone, against a critic; latents stay valid.

Called by the command line. A decoder that only learns to be near on average paints what it is not
sure of as a blur. A *critic* of patches learns to tell its pictures from real ones, and the decoder
to pass (hinge loss; patches as in Isola et al. 2017). The critic does not ship. Legend: B batch,
C channels, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from models.recipe.autoencoder import Phase, draw_crops, picture_loss, psnr_db
from models.recipe.dataset import Dataset
from models.recipe.libraries import AutoencoderTiny
from models.recipe.loop import LossFunction

PHASE = Phase(
    minutes=20.0,
    batch=16,
    learning_rate=4e-4,
    ema_decay=0.995,
    white_share=0.7,
    latent_noise=0.05,
    seed=11,
)
CRITIC_WEIGHT = 0.03
_CRITIC_NOISE = 0.02
"""Added to what the critic sees, so that it does not live on the last bit of a real picture."""


class Critic(nn.Sequential):
    """A score for each patch of a picture, higher for real ones; it sees about 22 pixels."""

    def __init__(self) -> None:
        """Untrained."""
        super().__init__(
            nn.Conv2d(3, 32, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.GroupNorm(8, 64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 96, 3, padding=1),
            nn.GroupNorm(8, 96),
            nn.LeakyReLU(0.2),
            nn.Conv2d(96, 1, 3, padding=1),
        )


def decoder_loss(
    model: AutoencoderTiny, critic: Critic, dataset: Dataset, batch: int, device: torch.device
) -> LossFunction:
    """Losses of decoder and critic, added up; neither moves the other's weights."""

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = draw_crops(dataset, batch, PHASE, generator).to(device)
        with torch.no_grad():
            latents = model.encoder(pictures).float()
        noise = torch.randn(latents.shape, generator=generator).to(device)
        output = model.decoder(latents + PHASE.latent_noise * noise).float()
        reconstruction = picture_loss(output, pictures)

        def grainy(pictures_BCHW: Tensor) -> Tensor:
            grain = torch.randn(pictures_BCHW.shape, generator=generator).to(device)
            return pictures_BCHW + _CRITIC_NOISE * grain

        judged = F.relu(1.0 - critic(grainy(pictures)).float()).mean()
        judged = judged + F.relu(1.0 + critic(grainy(output.detach())).float()).mean()
        frozen = {name: weights.detach() for name, weights in critic.named_parameters()}
        passed: Tensor = functional_call(critic, frozen, (output,)).float().mean()
        total = reconstruction - CRITIC_WEIGHT * passed + judged
        return total, {
            "psnr_db": psnr_db(output.detach(), pictures),
            "reconstruction": reconstruction.detach(),
            "critic": judged.detach(),
        }

    return loss


def as_modules(model: AutoencoderTiny, critic: Critic | None = None) -> dict[str, nn.Module]:
    """The names under which checkpoints hold the polished decoder and its critic."""
    modules: dict[str, nn.Module] = {"decoder": model.decoder}
    return modules if critic is None else {**modules, "critic": critic}
