"""Sizes that an input may have: what a compiler that plans for sizes must know.

Part of a `GraphSource`; engines and their keys are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeRange:
    """The shapes of one input, equal where an axis is fixed."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    """What speed matters most for."""
    largest: tuple[int, ...]

    def __post_init__(self) -> None:
        ranks = {len(self.smallest), len(self.usual), len(self.largest)}
        if len(ranks) != 1 or not all(
            low <= middle <= high
            for low, middle, high in zip(self.smallest, self.usual, self.largest, strict=True)
        ):
            raise ValueError("smallest, usual and largest shape must rise along every axis")

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether an input of `shape` is within."""
        return len(shape) == len(self.smallest) and all(
            low <= size <= high
            for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )
