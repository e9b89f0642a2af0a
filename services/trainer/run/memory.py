"""How the process takes memory while it trains: kept rather than given back and asked for again.

Called by `training` before the first step. A step on a CPU allocates and frees gigabytes in pieces
of tens of megabytes, for weights in the layout that a kernel wants above all; to get each anew from
the system takes a third of a step.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from services.runtime.allocator import keep_buffers


def keep_memory() -> None:
    """Give back what loading has left, and from now on reuse what is freed."""
    gc.collect()
    # With deterministic algorithms torch would fill every new tensor with NaN, which only helps to
    # find tensors that are read before they are written.
    deterministic: Any = torch.utils.deterministic  # a module with a property that has no type
    deterministic.fill_uninitialized_memory = False
    keep_buffers()
