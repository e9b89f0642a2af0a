"""How the process treats memory that it has freed; settled once, before it allocates much."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 2**20


def return_large_buffers() -> None:
    """Have the C library give buffers of a megabyte or more back to the system when they are freed.

    glibc otherwise learns from the first of them to keep up to 32 MB for later, in a heap for each
    thread: a picture of 6 megapixels, doubled, left a server 290 MiB larger. No-op with other C
    libraries.
    """
    if sys.platform != "linux":
        return
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    set_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)
