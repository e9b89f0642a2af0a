"""A failed model call is repeated item by item, so that it ends nobody's work but the culprit's.

Used by batchers around every call into a model. A fault is what a model may raise over its
inputs or for lack of memory. A lost device is none: `torch.AcceleratorError` (an illegal access,
a reset) leaves the context unusable, passes through here and ends the process, as does any defect
of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from services.graphs.graph import GraphError

T = TypeVar("T")
R = TypeVar("R")

# torch, CUDA's allocator and OpenVINO raise RuntimeError; shapes that do not fit are ValueErrors.
MODEL_FAULTS = (RuntimeError, ValueError, GraphError)


@dataclass(kw_only=True, slots=True)
class Outcome(Generic[T, R]):
    """What became of a batch."""

    results: list[tuple[Sequence[T], R]] = field(default_factory=list)
    """Items that were computed together, with their result."""
    faults: list[tuple[T, Exception]] = field(default_factory=list)
    """Items that fail even alone."""


def run_isolated(items: Sequence[T], call: Callable[[Sequence[T]], R]) -> Outcome[T, R]:
    """Call with all items at once, and with each alone if that fails.

    `call` must be repeatable: without effect when it raises.
    """
    try:
        return Outcome(results=[(items, call(items))])
    except torch.AcceleratorError:
        raise
    except MODEL_FAULTS as error:
        if len(items) == 1:
            # A traceback would hold the tensors of the failed call.
            return Outcome(faults=[(items[0], error.with_traceback(None))])
    outcome: Outcome[T, R] = Outcome()
    for item in items:
        alone = run_isolated([item], call)
        outcome.results += alone.results
        outcome.faults += alone.faults
    return outcome
