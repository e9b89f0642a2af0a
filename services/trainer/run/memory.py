"""How the process takes memory while it trains: kept rather than given back and asked for again.

Called by `training` before the first step. A step on a CPU allocates and frees gigabytes in pieces
of tens of megabytes, for weights in the layout that a kernel wants above all. By default the C
library maps each piece anew, and the system fills it with zeros first: a third of a step.
"""

from __future__ import annotations

import ctypes
import gc
import logging
from typing import Any

import torch

_LOGGER = logging.getLogger(__name__)

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 2**31 - 1
_MAPPED_BYTES = 2**30
"""What is larger is mapped still."""


def keep_memory() -> None:
    """Give back what loading has left, and from now on reuse what is freed; glibc alone can."""
    gc.collect()
    # With deterministic algorithms torch would fill every new tensor with NaN, which only helps to
    # find tensors that are read before they are written.
    deterministic: Any = torch.utils.deterministic  # a module with a property that has no type
    deterministic.fill_uninitialized_memory = False
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        _LOGGER.info("the C library is not glibc; its allocator stays as it is")
        return
    library.malloc_trim(0)
    library.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
