"""What is trained: low-rank adapters, or everything in denoiser and text encoders.

`choose_weights` prepares the components in place. Frozen weights of a LoRA run are kept in the
run's precision; what is trained stays in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import LoraConfig
from torch import nn

from services.trainer.run import randomness
from services.trainer.run.components import Components
from services.trainer.run.configuration import LoraSection, Precision, RunConfiguration
from services.trainer.run.violations import RefusedError, violation

DTYPES: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# The place of a part decides its adapters' first weights.
_ADAPTER_PARTS = ("unet", "text_encoder", "text_encoder_2", "transformer")


def choose_weights(
    components: Components, configuration: RunConfiguration, device: torch.device
) -> None:
    """Load and mark what is trained, on `device`, with adapters where the method is LoRA.

    Raises `RefusedError` where a target names no layer.
    """
    optimization = configuration.optimization
    lora = configuration.method == "lora"
    dtype = DTYPES[optimization.precision] if lora else torch.float32
    denoiser = components.base.parts.denoiser
    parts = components.trainable_parts if optimization.train_text_encoder else (denoiser,)
    trained = {part: components.part(part, dtype) for part in parts}
    for part, module in trained.items():
        if lora:
            _adapt(part, module, configuration.lora, optimization.seed)
        else:
            module.requires_grad_(True)
        module.to(device).train()
        if optimization.gradient_checkpointing:
            checkpointed: Any = module
            if part == denoiser:
                checkpointed.enable_gradient_checkpointing()
            else:
                checkpointed.activation_checkpointing_enable()


def trained_parameters(components: Components) -> dict[str, nn.Parameter]:
    """By name, `unet.…`, `text_encoder.…` and the like, in a fixed order."""
    return {
        f"{part}.{name}": parameter
        for part, module in components.loaded.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _adapt(part: str, module: nn.Module, section: LoraSection, seed: int) -> None:
    is_text = part.startswith("text_encoder")
    targets = section.text_encoder_targets if is_text else section.denoiser_targets
    config = LoraConfig(
        r=section.rank,
        # peft types it as an integer and computes with it as a number.
        lora_alpha=cast(int, section.alpha),
        lora_dropout=section.dropout,
        target_modules=list(targets),
        init_lora_weights=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.key(seed, "adapter", _ADAPTER_PARTS.index(part)))
        try:
            cast(Any, module).add_adapter(config)
        except ValueError as error:
            field = f"lora.{'text_encoder' if is_text else 'denoiser'}_targets"
            raise RefusedError([violation(field, "NO_SUCH_LAYER", str(error))]) from error
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
