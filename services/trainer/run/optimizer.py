"""AdamW, in 32 bits or with moments in 8 (bitsandbytes; Dettmers et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch

from services.trainer.run.configuration import OptimizationSection


def make_optimizer(
    section: OptimizationSection, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The optimizer of a run over groups of parameters with their rates."""
    betas = (section.beta1, section.beta2)
    if section.optimizer == "adamw_8bit":
        # An optional package without types; the checks of a run have found it.
        from bitsandbytes import optim

        library: Any = optim
        eight_bit: torch.optim.Optimizer = library.AdamW8bit(
            groups, betas=betas, eps=section.epsilon, weight_decay=section.weight_decay
        )
        return eight_bit
    return torch.optim.AdamW(
        groups,
        betas=betas,
        eps=section.epsilon,
        weight_decay=section.weight_decay,
        # Under autocast Lightning does not clip what a fused optimizer takes.
        fused=section.precision == "float32",
    )
