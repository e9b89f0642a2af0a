"""The folder of a base model, as far as its configuration tells; no weights are loaded.

Called by the checks of a run and by whoever loads components. It knows the families; SD 1.x is the
one there is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

FamilyName = Literal["sd1"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]

_CLASSES: Mapping[str, tuple[str, ...]] = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
}
_WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
_CONFIGS = (
    *("text_encoder/config.json", "unet/config.json", "vae/config.json"),
    *("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"),
)
_LATENT_CHANNELS = 4


class BaseModelError(Exception):
    """A folder that no run can start from; one line that says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """What a run must know of its base; sides in pixels."""

    folder: Path
    family: FamilyName
    vae_class: str
    native_side: int
    """Side of the pictures that it was trained on."""
    side_multiple: int
    """Sides are multiples of this."""
    prediction_type: PredictionType


@lru_cache(maxsize=4)
def revision_of(base: BaseModel) -> str:
    """Digest of weights and configuration, 16 hexadecimal digits; reads every file once."""
    total = hashlib.sha256()
    for path in sorted(_files(base.folder)):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(base.folder).as_posix()} {digest}\n".encode())
    return total.hexdigest()[:16]


def read_base_model(folder: Path) -> BaseModel:
    """Read and check the configuration in `folder`. Raises `BaseModelError`."""
    index = _read_json(folder / "model_index.json")
    _check_classes(folder, index)
    missing = [path for path in _files(folder) if not path.is_file()]
    if missing:
        raise BaseModelError(f"{missing[0]} is missing")
    unet, vae, scheduler = (
        _read_json(folder / name)
        for name in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    )
    for key in ("in_channels", "out_channels"):
        if unet.get(key) != _LATENT_CHANNELS:
            raise BaseModelError(
                f"{folder}: unet {key} is {unet.get(key)}; only {_LATENT_CHANNELS} can be trained"
            )
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise BaseModelError(f"{folder}: prediction_type {prediction!r} cannot be trained")
    vae_scale = 2 ** (_level_count(folder, vae) - 1)
    side = unet.get("sample_size")
    if not isinstance(side, int) or side < 1:
        raise BaseModelError(f"{folder}: unet sample_size must be a positive integer")
    return BaseModel(
        folder=folder,
        family="sd1",
        vae_class=str(vae["_class_name"]),
        native_side=side * vae_scale,
        side_multiple=vae_scale * 2 ** (_level_count(folder, unet) - 1),
        prediction_type=cast(PredictionType, prediction),
    )


def _files(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in _CONFIGS)
    yield from (folder / part / name for part, name in _WEIGHTS.items())


def _check_classes(folder: Path, index: Mapping[str, Any]) -> None:
    for part, classes in _CLASSES.items():
        entry = index.get(part)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found not in classes:
            raise BaseModelError(
                f"{folder} is not of the SD 1.x architecture: its {part} is {found or 'absent'}, "
                f"not {' or '.join(classes)}"
            )
    for foreign in ("text_encoder_2", "transformer"):
        if index.get(foreign) not in (None, [None, None]):
            raise BaseModelError(f"{folder} is not of the SD 1.x architecture: it has a {foreign}")


def _level_count(folder: Path, config: Mapping[str, Any]) -> int:
    for key in ("block_out_channels", "decoder_block_out_channels"):
        if isinstance(config.get(key), list) and config[key]:
            return len(config[key])
    raise BaseModelError(f"{folder}: a part has no block_out_channels")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{path} must hold a JSON object")
    return value
