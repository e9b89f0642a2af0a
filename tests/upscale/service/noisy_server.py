"""`python -m tests.upscale.service.noisy_server`: a server in a process of its own, to be measured.

Its network draws noise, which no format compresses: files are as large as they can be. It prints
its port, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from services.runtime.allocator import return_large_buffers
from tests.upscale.doubles import NearestUpscaler
from tests.upscale.service.harness import serving


class NoisyUpscaler(NearestUpscaler):
    """Noise of the size that is asked for."""

    def enlarge(self, tiles_B3hw: Tensor, denoise_strength: float | None) -> Tensor:
        batch, _, height, width = tiles_B3hw.shape
        sides = (batch, height * self.scale, width * self.scale, 3)
        return torch.randint(0, 256, sides, dtype=torch.uint8)


async def _main() -> None:
    return_large_buffers()
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), NoisyUpscaler()) as running:
            print(running.server.port, flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
