"""Small networks with random weights, of both architectures."""

from __future__ import annotations

import torch
from torch import Tensor

from services.upscale.architectures.rrdbnet import Rrdbnet, RrdbShape
from services.upscale.architectures.srvgg import Srvgg, SrvggShape

TINY_SRVGG = SrvggShape(channel_count=3, feature_count=8, body_conv_count=2, scale=2)
TINY_RRDBNETS = {
    scale: RrdbShape(channel_count=3, feature_count=8, growth_count=4, block_count=1, scale=scale)
    for scale in (1, 2, 4)
}


def srvgg_weights(shape: SrvggShape = TINY_SRVGG, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(Srvgg(shape).state_dict())


def rrdbnet_weights(scale: int = 4, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(Rrdbnet(TINY_RRDBNETS[scale]).state_dict())
