"""One call of a denoiser, by family; used by the learner.

Shape legend: B rows, C latent channels, h and w latent sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from services.trainer.run.families import FamilyName
from services.trainer.run.text import Text


def denoise(
    family: FamilyName,
    denoiser: nn.Module,
    noisy_BChw: Tensor,
    times_B: Tensor,
    text: Text,
    sizes: Sequence[tuple[int, ...]],
) -> Tensor:
    """What the denoiser returns, (B, C, h, w); `sizes` are six of each row, which SDXL takes."""
    call: Any = denoiser
    if family == "sd3":
        returned = call(
            hidden_states=noisy_BChw,
            timestep=times_B,
            encoder_hidden_states=text.embeddings_BLD,
            pooled_projections=text.pooled_BP,
            return_dict=False,
        )
    else:
        returned = call(
            noisy_BChw,
            times_B,
            text.embeddings_BLD,
            added_cond_kwargs=_added(text, sizes, times_B.device) if family == "sdxl" else None,
            return_dict=False,
        )
    return cast(Tensor, returned[0])


def _added(
    text: Text, sizes: Sequence[tuple[int, ...]], device: torch.device
) -> dict[str, Tensor | None]:
    time_ids = torch.tensor(list(sizes), device=device, dtype=torch.float32)
    return {"text_embeds": text.pooled_BP, "time_ids": time_ids}
