"""The cases that are measured, and how one is told to its process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Trainer = Literal["limner", "diffusers"]
Method = Literal["lora", "full"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One way to train; both trainers take the same pictures, batch, rank and rate."""

    trainer: Trainer
    method: Method
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    train_text_encoder: bool = False
    train_autoencoder: bool = False
    """Diffusers' loop alone: its encoder takes gradients too, as if nothing were frozen."""
    cached: bool = True
    """Limner alone: latents and, where the text encoder is frozen, embeddings are kept."""

    @property
    def name(self) -> str:
        """For people."""
        parts: list[str] = [self.trainer, self.method, self.precision]
        if self.train_text_encoder:
            parts.append("text encoder trained")
        if self.train_autoencoder:
            parts.append("autoencoder trained")
        if self.gradient_checkpointing:
            parts.append("gradient checkpointing")
        if self.trainer == "limner" and not self.cached:
            parts.append("no caches")
        return ", ".join(parts)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What every case has to do."""

    side: int
    """Pixels a side."""
    step_count: int
    """Measured optimizer steps."""
    warmup_count: int
    """Steps before them."""
    rank: int = 4
    learning_rate: float = 1e-4

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def all_cases() -> list[Case]:
    """Every case, those that are compared next to each other."""
    pairs: list[Case] = []
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    trainers: tuple[Trainer, ...] = ("diffusers", "limner")
    for precision in precisions:
        pairs += [Case(trainer=each, method="lora", precision=precision) for each in trainers]
    pairs += [
        Case(trainer="limner", method="lora", cached=False),
        Case(trainer="diffusers", method="lora", gradient_checkpointing=True),
        Case(trainer="limner", method="lora", gradient_checkpointing=True),
        Case(trainer="diffusers", method="full", gradient_checkpointing=True),
        Case(trainer="limner", method="full", gradient_checkpointing=True),
        Case(trainer="limner", method="full"),
        Case(trainer="diffusers", method="full", train_text_encoder=True),
        Case(trainer="limner", method="full", train_text_encoder=True),
        Case(trainer="diffusers", method="full", train_text_encoder=True, train_autoencoder=True),
    ]
    return pairs
