"""Hyperparameters that differ between families and methods; those of a file come first.

Sources: the DreamBooth paper (Ruiz et al. 2023) and its reference implementation for full
fine-tuning of SD 1.x, with a step count that suits batches of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from services.trainer.run.base_model import FamilyName

_DEFAULTS: Mapping[tuple[FamilyName, str], Mapping[str, Any]] = MappingProxyType(
    {
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
    }
)


def with_defaults(tree: Mapping[str, Any], family: FamilyName) -> dict[str, Any]:
    """`tree`, a configuration as read, over the defaults of its family and method."""
    return _merged(_DEFAULTS.get((family, str(tree.get("method", "lora"))), {}), tree)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        default = merged.get(key)
        both = isinstance(default, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(default, value) if both else value  # type: ignore[arg-type]
    return merged
