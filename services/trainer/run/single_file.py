"""LoRA weights in the single-file layout of kohya-ss' scripts, which most other tools read.

Keys are flat (`lora_unet_down_blocks_0_…_to_q.lora_down.weight`), and every layer has an `alpha`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

# With two text encoders both are numbered.
_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
_FIRST_OF_TWO = "lora_te1"
_SIDES = {"lora_A": "lora_down", "lora_B": "lora_up"}


def single_file_keys(
    states: Mapping[str, Mapping[str, Tensor]], *, alpha: float
) -> dict[str, Tensor]:
    """Turn peft's state of each part (`unet`, `text_encoder`, …) into the flat layout."""
    flat: dict[str, Tensor] = {}
    prefixes = dict(_PREFIXES)
    if "text_encoder_2" in states:
        prefixes["text_encoder"] = _FIRST_OF_TWO
    for part, state in states.items():
        for key, tensor in state.items():
            layer, side, leaf = key.rsplit(".", 2)
            name = f"{prefixes[part]}_{layer.replace('.', '_')}"
            flat[f"{name}.{_SIDES[side]}.{leaf}"] = tensor.detach().cpu().contiguous()
            flat[f"{name}.alpha"] = torch.tensor(alpha)
    return flat


def write_single_file(
    path: Path, tensors: Mapping[str, Tensor], *, rank: int, alpha: float
) -> None:
    """Write the file with the two metadata entries that readers look for."""
    metadata = {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path, metadata)
