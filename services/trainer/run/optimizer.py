"""AdamW, in 32 bits or, where bitsandbytes and a CUDA device are there, with moments in 8."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch

from services.runtime.errors import FieldViolation
from services.trainer.run.configuration import OptimizationSection
from services.trainer.run.violations import violation


def optimizer_violations(
    section: OptimizationSection, device: torch.device
) -> Iterator[FieldViolation]:
    """Why the chosen optimizer cannot run here."""
    if section.optimizer == "adamw":
        return
    field = "optimization.optimizer"
    if device.type != "cuda":
        yield violation(field, "NO_DEVICE", "adamw_8bit needs CUDA; use adamw")
    if find_spec("bitsandbytes") is None:
        yield violation(field, "NOT_INSTALLED", "adamw_8bit needs the package bitsandbytes")


def make_optimizer(
    section: OptimizationSection, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The optimizer of a run over groups of parameters with their rates."""
    betas = (section.beta1, section.beta2)
    if section.optimizer == "adamw_8bit":
        # An optional package; `optimizer_violations` has found it.
        from bitsandbytes.optim import AdamW8bit

        eight_bit: torch.optim.Optimizer = AdamW8bit(
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
