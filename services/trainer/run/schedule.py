"""The learning rate as a function of the step, so that it has no state."""

from __future__ import annotations

import math

from services.trainer.run.configuration import OptimizationSection


def rate_factor(section: OptimizationSection, step: int) -> float:
    """Share of the learning rate in optimizer step `step`, the first being 0.

    Rises linearly over the warm-up; then stays, or falls linearly or along a half cosine so that it
    would be zero after the last step.
    """
    if step < section.warmup_step_count:
        return (step + 1) / section.warmup_step_count
    if section.schedule == "constant":
        return 1.0
    falling = section.step_count - section.warmup_step_count
    done = (step - section.warmup_step_count) / falling
    return 1.0 - done if section.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
