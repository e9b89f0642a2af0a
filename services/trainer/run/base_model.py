"""The folder of a base model, as far as its configuration tells; no weights are loaded.

Called by the checks of a run and by whoever loads components. It knows the families: SD 1.x and
SDXL. Another one with a UNet is an entry of `FAMILIES`; what else is needed stands in ADR 18.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

FamilyName = Literal["sd1", "sdxl"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]

_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
_SHARED_CLASSES: Mapping[str, tuple[str, ...]] = {
    "tokenizer": _TOKENIZER,
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
}
_LATENT_CHANNELS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """An architecture: which part is of which class, and the stock pipeline around them."""

    title: str
    pipeline_class: str
    classes: Mapping[str, tuple[str, ...]]
    text_parts: tuple[str, ...]
    """Text encoders in the order in which their widths are joined."""

    @property
    def tokenizer_parts(self) -> tuple[str, ...]:
        """Of the text encoders, in their order."""
        return tuple(part.replace("text_encoder", "tokenizer") for part in self.text_parts)

    def files(self) -> Iterator[str]:
        """Every file that a folder of the family must have."""
        yield "scheduler/scheduler_config.json"
        for part in self.tokenizer_parts:
            yield f"{part}/tokenizer_config.json"
        for part in ("unet", "vae"):
            yield from (f"{part}/config.json", f"{part}/diffusion_pytorch_model.safetensors")
        for part in self.text_parts:
            yield from (f"{part}/config.json", f"{part}/model.safetensors")


FAMILIES: Mapping[FamilyName, Family] = MappingProxyType(
    {
        "sd1": Family(
            title="SD 1.x",
            pipeline_class="StableDiffusionPipeline",
            classes=_SHARED_CLASSES,
            text_parts=("text_encoder",),
        ),
        "sdxl": Family(
            title="SDXL",
            pipeline_class="StableDiffusionXLPipeline",
            classes={
                **_SHARED_CLASSES,
                "tokenizer_2": _TOKENIZER,
                "text_encoder_2": ("CLIPTextModelWithProjection",),
            },
            text_parts=("text_encoder", "text_encoder_2"),
        ),
    }
)


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
    zeroes_empty_prompts: bool = False
    """The stock pipeline conditions on zeros where a prompt is empty."""

    @property
    def parts(self) -> Family:
        """Its family."""
        return FAMILIES[self.family]


@lru_cache(maxsize=4)
def revision_of(base: BaseModel) -> str:
    """Digest of weights and configuration, 16 hexadecimal digits; reads every file once."""
    total = hashlib.sha256()
    for path in sorted(base.folder / name for name in base.parts.files()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(base.folder).as_posix()} {digest}\n".encode())
    return total.hexdigest()[:16]


def read_base_model(folder: Path) -> BaseModel:
    """Read and check the configuration in `folder`. Raises `BaseModelError`."""
    index = _read_json(folder / "model_index.json")
    family: FamilyName = "sdxl" if _class_of(index, "text_encoder_2") else "sd1"
    _check_classes(folder, index, FAMILIES[family])
    paths = (folder / name for name in FAMILIES[family].files())
    missing = [path for path in paths if not path.is_file()]
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
        family=family,
        vae_class=str(vae["_class_name"]),
        native_side=side * vae_scale,
        side_multiple=vae_scale * 2 ** (_level_count(folder, unet) - 1),
        prediction_type=cast(PredictionType, prediction),
        zeroes_empty_prompts=family == "sdxl"
        and bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def _check_classes(folder: Path, index: Mapping[str, Any], family: Family) -> None:
    other = f"{folder} is not of the {family.title} architecture"
    for part, classes in family.classes.items():
        found = _class_of(index, part)
        if found not in classes:
            raise BaseModelError(
                f"{other}: its {part} is {found or 'absent'}, not {' or '.join(classes)}"
            )
    for foreign in ("text_encoder_3", "transformer"):
        if _class_of(index, foreign):
            raise BaseModelError(f"{other}: it has a {foreign}")


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


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
