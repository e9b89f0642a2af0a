"""Runs a component in torch itself: the fallback on a CPU, the runtime on CUDA.

Half precision and channels-last are for CUDA; on a CPU float32 is both faster and exact.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from services.graphs.graph import GraphSource, Precision

_DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class TorchGraph:
    """A component in torch on one device.

    The module is moved to `device` and `precision` in place: it belongs to the graph from then on.
    """

    piece_sizes = ()

    def __init__(
        self,
        source: GraphSource,
        *,
        device: str,
        precision: Precision = "float32",
        compiled: bool = False,
    ) -> None:
        """Take over the source's module; `compiled` runs it through `torch.compile`.

        Compilation uses CUDA graphs, so every new batch size pays once, for seconds.
        """
        self.runtime = f"torch-{precision}" + ("-compiled" if compiled else "")
        self._dtype = _DTYPES[precision]
        self._device = device
        self._compiled = compiled
        module = source.module.to(device=device, dtype=self._dtype).eval().requires_grad_(False)
        if device == "cuda":
            module = _channels_last(module)
        self._module = (
            cast(nn.Module, torch.compile(module, mode="reduce-overhead", dynamic=False))
            if compiled
            else module
        )

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the component; floating results come back as contiguous float32."""
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        output = cast(Tensor, self._module(*(self._prepared(tensor) for tensor in inputs)))
        if not output.is_floating_point():
            return output.contiguous()
        # A compiled module hands out memory that its next run reuses.
        return output.to(torch.float32, copy=self._compiled).contiguous()

    def _prepared(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.to(self._device)
        # Timesteps, the only vectors, keep float32: in half precision neighbours would merge.
        dtype = torch.float32 if tensor.ndim == 1 else self._dtype
        layout = (
            torch.channels_last
            if tensor.ndim == 4 and self._device == "cuda"
            else torch.contiguous_format
        )
        return tensor.to(device=self._device, dtype=dtype, memory_format=layout)


def _channels_last(module: nn.Module) -> nn.Module:
    return cast(nn.Module, module.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
