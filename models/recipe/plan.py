"""How long and how hard a stage trains. Called by `stages` and `loop`; does not train."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long and how hard to train.

    Exactly one of `step_count` and `budget_s` is set: a budget in seconds stretches the schedule
    over the time that is left, however fast the machine is. The rate stays at its peak until the
    last `cooldown` of the run, in which it falls along half a cosine: with a short cooldown the
    goal may move while the run is on (Hägele et al. 2024).
    """

    learning_rate: float
    step_count: int | None = None
    budget_s: float | None = None
    warmup_steps: int = 150
    ema_decay: float = 0.998
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    cooldown: float = 1.0
    final_rate: float = 0.02
    muon: bool = False
    """Matrices and convolutions inside the network learn by Muon, all else by AdamW."""
    seed: int = 0
    save_every_s: float = 120.0
    log_every: int = 25
    watch_every: int = 500

    def __post_init__(self) -> None:
        """Raise ValueError unless there is exactly one budget."""
        if (self.step_count is None) == (self.budget_s is None):
            raise ValueError("set exactly one of step_count and budget_s")

    def progress(self, step: int, elapsed_s: float) -> float:
        """The share of the run that is done, from 0 to 1."""
        done = step / self.step_count if self.step_count else elapsed_s / (self.budget_s or 1.0)
        return min(1.0, done)

    def rate(self, step: int, progress: float) -> float:
        """Linear warm-up, the peak, then a cosine down to `final_rate` of the peak."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        fallen = max(0.0, 1.0 - (1.0 - progress) / self.cooldown)
        cosine = 0.5 * (1.0 + math.cos(math.pi * fallen))
        return self.learning_rate * warmup * (self.final_rate + (1.0 - self.final_rate) * cosine)
