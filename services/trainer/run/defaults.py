"""Hyperparameters that differ between kinds of models and methods; those of a file come first.

Sources: for full fine-tuning of SD 1.x the DreamBooth paper (Ruiz et al. 2023) and its reference
implementation, with a step count that suits batches of one; for LoRA the customary rates of the
field; SDXL alike, its text encoders left alone; for SD3 the targets and rates of diffusers' script,
its guidance from the stock pipeline. For small models they were measured on the embedded
one (`python -m benchmarks.personalisation`): a network of some million parameters needs rates tens
of times as high, and adapters in its convolutions too, for it has little attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from services.trainer.run.base_model import BaseModel

Kind = Literal["small", "sd1", "sdxl", "sd3"]

_SMALL_SIDE = 128
"""Native side, in pixels, up to which a model counts as small."""
_GENTLE_GUIDANCE = {"guidance_scale": 2.5}
_SD3_GUIDANCE = {"guidance_scale": 7.0}
_JOINT_ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
"""Of a transformer's blocks: the picture's projections and the text's."""

_DEFAULTS: Mapping[tuple[Kind, str], Mapping[str, Any]] = MappingProxyType(
    {
        ("small", "lora"): {
            "optimization": {"step_count": 400, "batch_size": 2, "learning_rate": 1e-3},
            "lora": {
                "denoiser_targets": (
                    *("to_q", "to_k", "to_v", "to_out.0"),
                    *("conv1", "conv2", "net.0.proj", "net.2"),
                )
            },
            "prior": _GENTLE_GUIDANCE,
            "validation": _GENTLE_GUIDANCE,
        },
        ("small", "full"): {
            "optimization": {"step_count": 300, "batch_size": 2, "learning_rate": 1e-4},
            "prior": _GENTLE_GUIDANCE,
            "validation": _GENTLE_GUIDANCE,
        },
        ("sd1", "lora"): {
            "optimization": {
                "step_count": 800,
                "learning_rate": 1e-4,
                "text_encoder_learning_rate": 5e-5,
            }
        },
        ("sd1", "full"): {
            "optimization": {
                "step_count": 800,
                "learning_rate": 2e-6,
                "gradient_checkpointing": True,
            }
        },
        ("sdxl", "lora"): {
            "optimization": {
                "step_count": 800,
                "learning_rate": 1e-4,
                "train_text_encoder": False,
                "gradient_checkpointing": True,
            }
        },
        ("sd3", "lora"): {
            "optimization": {
                "step_count": 800,
                "learning_rate": 1e-4,
                "train_text_encoder": False,
                "gradient_checkpointing": True,
            },
            "lora": {"denoiser_targets": _JOINT_ATTENTION},
            "prior": _SD3_GUIDANCE,
            "validation": _SD3_GUIDANCE,
        },
        ("sd3", "full"): {
            "optimization": {
                "step_count": 800,
                "learning_rate": 1e-6,
                "train_text_encoder": False,
                "gradient_checkpointing": True,
            },
            "prior": _SD3_GUIDANCE,
            "validation": _SD3_GUIDANCE,
        },
        ("sdxl", "full"): {
            "optimization": {
                "step_count": 800,
                "learning_rate": 1e-6,
                "train_text_encoder": False,
                "gradient_checkpointing": True,
            }
        },
    }
)


def with_defaults(tree: Mapping[str, Any], base: BaseModel) -> dict[str, Any]:
    """`tree`, a configuration as read, over the defaults of its base model and method."""
    kind: Kind = "small" if base.native_side <= _SMALL_SIDE else base.family
    defaults = dict(_DEFAULTS.get((kind, str(tree.get("method", "lora"))), {}))
    if tree.get("prior") is None:
        defaults.pop("prior", None)  # a default must not turn it on
    return _merged(defaults, tree)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        default = merged.get(key)
        both = isinstance(default, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(default, value) if both else value  # type: ignore[arg-type]
    return merged
