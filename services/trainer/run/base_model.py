"""The folder of a base model, as far as its configuration tells; no weights are loaded.

Called by the checks of a run and by whoever loads components. The families that it knows are in
`families`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from services.trainer.run.families import FAMILIES, Family, FamilyName

DiffusionType = Literal["epsilon", "v_prediction", "sample"]
PredictionType = DiffusionType | Literal["flow"]

_DIFFUSION_TYPES = ("epsilon", "v_prediction", "sample")
_TEXT_WEIGHTS = "model.safetensors"
_SHARD_INDEX = f"{_TEXT_WEIGHTS}.index.json"
DENOISER_WEIGHTS = "diffusion_pytorch_model.safetensors"


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
    most_side: int | None
    """Sides end here; None: nowhere."""
    prediction_type: PredictionType
    zeroes_empty_prompts: bool = False
    """The stock pipeline conditions on zeros where a prompt is empty."""
    optional_text_part: str | None = None
    """The text encoder that it could do without, where it has it."""
    text_width: int | None = None
    """Of the rows that a transformer is told of a prompt; None for a UNet."""

    @property
    def parts(self) -> Family:
        """Its family."""
        return FAMILIES[self.family]

    @property
    def text_parts(self) -> tuple[str, ...]:
        """All its text encoders."""
        further = () if self.optional_text_part is None else (self.optional_text_part,)
        return (*self.parts.text_parts, *further)

    @property
    def tokenizer_parts(self) -> tuple[str, ...]:
        """Of its text encoders, in their order."""
        return tuple(map(self.parts.tokenizer_of, self.text_parts))

    def files(self) -> Iterator[str]:
        """Every file that it is made of, relative to its folder. Raises `BaseModelError`."""
        yield "scheduler/scheduler_config.json"
        for part in self.tokenizer_parts:
            yield f"{part}/tokenizer_config.json"
        for part in (self.parts.denoiser, "vae"):
            yield from (f"{part}/config.json", f"{part}/{DENOISER_WEIGHTS}")
        for part in self.text_parts:
            yield f"{part}/config.json"
            yield from _text_weights(self.folder, part)


@lru_cache(maxsize=4)
def revision_of(base: BaseModel) -> str:
    """Digest of weights and configuration, 16 hexadecimal digits; reads every file once."""
    total = hashlib.sha256()
    for path in sorted(base.folder / name for name in base.files()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(base.folder).as_posix()} {digest}\n".encode())
    return total.hexdigest()[:16]


def read_base_model(folder: Path) -> BaseModel:
    """Read and check the configuration in `folder`. Raises `BaseModelError`."""
    index = _read_json(folder / "model_index.json")
    name = _family_of(index)
    family = FAMILIES[name]
    optional = family.optional_text_part
    if optional is not None and _class_of(index, optional) is None:
        optional = None
    _check_classes(folder, index, family, optional)
    denoiser, vae, scheduler = (
        _read_json(folder / path)
        for path in (
            *(f"{part}/config.json" for part in (family.denoiser, "vae")),
            "scheduler/scheduler_config.json",
        )
    )
    vae_scale = 2 ** (_level_count(folder, vae) - 1)
    base = BaseModel(
        folder=folder,
        family=name,
        vae_class=str(vae["_class_name"]),
        native_side=_positive(folder, denoiser, "sample_size") * vae_scale,
        side_multiple=vae_scale * _latent_multiple(folder, denoiser, family),
        most_side=_most_side(folder, denoiser, family, vae_scale),
        prediction_type=_prediction_type(folder, denoiser, scheduler, family),
        zeroes_empty_prompts=name == "sdxl"
        and bool(index.get("force_zeros_for_empty_prompt", True)),
        optional_text_part=optional,
        text_width=(
            _positive(folder, denoiser, "joint_attention_dim")
            if family.denoiser == "transformer"
            else None
        ),
    )
    missing = [path for path in base.files() if not (folder / path).is_file()]
    if missing:
        raise BaseModelError(f"{folder / missing[0]} is missing")
    return base


def _family_of(index: Mapping[str, Any]) -> FamilyName:
    if _class_of(index, "transformer"):
        return "sd3"
    return "sdxl" if _class_of(index, "text_encoder_2") else "sd1"


def _check_classes(
    folder: Path, index: Mapping[str, Any], family: Family, optional: str | None
) -> None:
    other = f"{folder} is not of the {family.title} architecture"
    absent = family.optional_text_part if optional is None else None
    for part, classes in family.classes.items():
        if absent is not None and part in (absent, family.tokenizer_of(absent)):
            continue
        found = _class_of(index, part)
        if found not in classes:
            raise BaseModelError(
                f"{other}: its {part} is {found or 'absent'}, not {' or '.join(classes)}"
            )
    for foreign in ("text_encoder_3", "transformer", "unet"):
        if foreign not in family.classes and _class_of(index, foreign):
            raise BaseModelError(f"{other}: it has a {foreign}")


def _prediction_type(
    folder: Path, denoiser: Mapping[str, Any], scheduler: Mapping[str, Any], family: Family
) -> PredictionType:
    for key in ("in_channels", "out_channels"):
        channels = denoiser.get(key)
        if channels != family.latent_channels:
            raise BaseModelError(
                f"{folder}: {family.denoiser} {key} is {channels}; "
                f"only {family.latent_channels} can be trained"
            )
    if family.denoiser == "transformer":
        if scheduler.get("_class_name") != family.training_scheduler_class:
            raise BaseModelError(
                f"{folder}: its scheduler is not {family.training_scheduler_class}"
            )
        return "flow"
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in _DIFFUSION_TYPES:
        raise BaseModelError(f"{folder}: prediction_type {prediction!r} cannot be trained")
    return cast(PredictionType, prediction)


def _latent_multiple(folder: Path, denoiser: Mapping[str, Any], family: Family) -> int:
    """What sides of latents are multiples of."""
    if family.denoiser == "transformer":
        return _positive(folder, denoiser, "patch_size")
    return int(2 ** (_level_count(folder, denoiser) - 1))


def _most_side(
    folder: Path, denoiser: Mapping[str, Any], family: Family, vae_scale: int
) -> int | None:
    """A transformer has positions for so many patches and no more."""
    if family.denoiser == "unet":
        return None
    patch_count = _positive(folder, denoiser, "pos_embed_max_size")
    return patch_count * _positive(folder, denoiser, "patch_size") * vae_scale


def _positive(folder: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise BaseModelError(f"{folder}: {key} of the denoiser must be a positive integer")
    return value


def _text_weights(folder: Path, part: str) -> list[str]:
    """The files of a text encoder's weights: one, or the shards of a large one and their index."""
    if (folder / part / _TEXT_WEIGHTS).is_file() or not (folder / part / _SHARD_INDEX).is_file():
        return [f"{part}/{_TEXT_WEIGHTS}"]
    shards = _read_json(folder / part / _SHARD_INDEX).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) else set()
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise BaseModelError(f"{folder / part / _SHARD_INDEX} names no files")
    return [f"{part}/{name}" for name in (_SHARD_INDEX, *sorted(names))]


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
