"""What is trained: low-rank adapters, or everything in UNet and text encoders.

`choose_weights` prepares the components in place. Frozen weights of a LoRA run are kept in the
run's precision; what is trained stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
_ADAPTER_PARTS = ("unet", "text_encoder", "text_encoder_2")


def choose_weights(components: Components, configuration: RunConfiguration) -> None:
    """Mark what is trained, with adapters where the method is LoRA.

    Raises `RefusedError` where a target names no layer.
    """
    optimization = configuration.optimization
    trained = dict(_trained_modules(components, configuration))
    if configuration.method == "full":
        for module in trained.values():
            module.requires_grad_(True)
    else:
        dtype = DTYPES[optimization.precision]
        for module in components.trainable.values():
            module.to(dtype)
        for part, module in trained.items():
            _adapt(part, module, configuration.lora, optimization.seed)
    for module in trained.values():
        module.train()
    if optimization.gradient_checkpointing:
        cast(Any, components.unet).enable_gradient_checkpointing()
        if optimization.train_text_encoder:
            for module in components.text_encoders.values():
                cast(Any, module).activation_checkpointing_enable()


def trained_parameters(components: Components) -> dict[str, nn.Parameter]:
    """By name, `unet.…` and `text_encoder.…`, in a fixed order."""
    return {
        f"{part}.{name}": parameter
        for part, module in components.trainable.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _trained_modules(
    components: Components, configuration: RunConfiguration
) -> Iterator[tuple[str, nn.Module]]:
    yield "unet", components.unet
    if configuration.optimization.train_text_encoder:
        yield from components.text_encoders.items()


def _adapt(part: str, module: nn.Module, section: LoraSection, seed: int) -> None:
    targets = section.unet_targets if part == "unet" else section.text_encoder_targets
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
            field = f"lora.{part.removesuffix('_2')}_targets"
            raise RefusedError([violation(field, "NO_SUCH_LAYER", str(error))]) from error
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
