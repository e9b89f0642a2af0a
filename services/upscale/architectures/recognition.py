"""Which network a state dict belongs to, told from the names and shapes of its tensors.

Called when weights are loaded or converted. Only networks whose every detail shows in their
weights are recognised; anything else is refused, never guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from services.upscale.architectures.rrdbnet import Rrdbnet, RrdbShape
from services.upscale.architectures.srvgg import Srvgg, SrvggShape
from services.upscale.weights.errors import UnsupportedWeightsError

NetworkShape: TypeAlias = SrvggShape | RrdbShape

_KNOWN = "known are SRVGGNetCompact (with PReLU) and RRDBNet"


def family_of(shape: NetworkShape) -> str:
    """Name of the architecture: `srvgg` or `rrdbnet`."""
    return "srvgg" if isinstance(shape, SrvggShape) else "rrdbnet"


def recognise(weights: Mapping[str, Tensor]) -> NetworkShape:
    """Shape of the network that has these weights.

    Raises `UnsupportedWeightsError` for one that is not known.
    """
    if "conv_first.weight" in weights and "conv_last.weight" in weights:
        return _rrdbnet(weights)
    if "body.0.weight" in weights and "body.1.weight" in weights:
        return _srvgg(weights)
    shown = ", ".join(sorted(weights)[:3]) or "nothing"
    raise UnsupportedWeightsError(f"no known architecture has {shown}; {_KNOWN}")


def build(shape: NetworkShape, weights: Mapping[str, Tensor]) -> nn.Module:
    """Network of `shape` with float32 `weights`, ready to run.

    Raises `UnsupportedWeightsError` where tensors are missing, left over or of another shape.
    """
    with torch.device("meta"):
        network = Srvgg(shape) if isinstance(shape, SrvggShape) else Rrdbnet(shape)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    odd = sorted(
        name
        for name in expected.keys() | weights.keys()
        if name not in weights or weights[name].shape != expected.get(name)
    )
    if odd:
        raise UnsupportedWeightsError(
            f"{len(odd)} tensors do not fit {family_of(shape)}, for example {odd[0]}"
        )
    own = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
    network.load_state_dict(own, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _srvgg(weights: Mapping[str, Tensor]) -> SrvggShape:
    indices = [int(m[1]) for name in weights if (m := re.fullmatch(r"body\.(\d+)\.weight", name))]
    first, last = weights["body.0.weight"], weights[f"body.{max(indices)}.weight"]
    if weights["body.1.weight"].ndim != 1 or first.ndim != 4 or last.ndim != 4:
        raise UnsupportedWeightsError(f"not a compact network; {_KNOWN}")
    channels = first.shape[1]
    scale = math.isqrt(last.shape[0] // channels)
    if channels not in (1, 3) or scale < 1 or last.shape[0] != channels * scale**2:
        raise UnsupportedWeightsError(
            f"a compact network from {channels} to {last.shape[0]} channels is not an upscaler"
        )
    return SrvggShape(
        channel_count=channels,
        feature_count=first.shape[0],
        body_conv_count=max(indices) // 2 - 1,
        scale=scale,
    )


def _rrdbnet(weights: Mapping[str, Tensor]) -> RrdbShape:
    blocks = {int(m[1]) for name in weights if (m := re.match(r"body\.(\d+)\.rdb1\.", name))}
    growth = weights.get("body.0.rdb1.conv1.weight")
    first, last = weights["conv_first.weight"], weights["conv_last.weight"]
    if growth is None or first.ndim != 4 or last.ndim != 4:
        raise UnsupportedWeightsError(f"not ESRGAN's network; {_KNOWN}")
    channels = last.shape[0]
    scale_of_folding = {1: 4, 4: 2, 16: 1}
    folded, rest = divmod(first.shape[1], channels)
    if rest or folded not in scale_of_folding:
        raise UnsupportedWeightsError(
            f"ESRGAN's network from {first.shape[1]} to {channels} channels is not an upscaler"
        )
    return RrdbShape(
        channel_count=channels,
        feature_count=first.shape[0],
        growth_count=growth.shape[0],
        block_count=max(blocks) + 1,
        scale=scale_of_folding[folded],
    )
