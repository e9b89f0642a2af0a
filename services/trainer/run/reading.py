"""From a YAML file to a checked run: every mistake in it and in its data, at once.

Called by `python -m services.trainer.run` and by the service before a job is stored. It loads no
weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from services.runtime.errors import FieldViolation
from services.trainer.run.base_model import BaseModel, BaseModelError, read_base_model, revision_of
from services.trainer.run.buckets import bucket_sizes
from services.trainer.run.configuration import RunConfiguration
from services.trainer.run.dataset import Picture, dataset_digest, find_pictures
from services.trainer.run.defaults import with_defaults
from services.trainer.run.violations import RefusedError, violation

_MAX_CONFIGURATION_BYTES = 2**20
# What may change between a run and its continuation without changing a number.
_INDIFFERENT = (
    *("output", "class_image_cache", "tracking", "base_model"),
    *("checkpoint_interval", "checkpoint_store"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedRun:
    """A run that can start."""

    configuration: RunConfiguration
    base: BaseModel
    side: int
    """Pixels a side of training pictures."""
    instances: tuple[Picture, ...]
    class_pictures: tuple[Picture, ...]
    """Those of the user; empty where the base model draws them."""

    @property
    def base_revision(self) -> str:
        """Digest of the base model; the first call reads its weights."""
        return revision_of(self.base)

    @property
    def dataset_digest(self) -> str:
        """Digest of all pictures that came from outside."""
        return dataset_digest([*self.instances, *self.class_pictures])

    def fingerprint(self) -> str:
        """Digest of everything that decides the run's numbers, 64 hexadecimal digits."""
        tree = self.configuration.model_dump(mode="json", exclude=set(_INDIFFERENT))
        tree["instance"].pop("images")
        if tree["prior"] is not None:
            tree["prior"].pop("images")
        tree |= {"base_revision": self.base_revision, "dataset": self.dataset_digest}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def read_run(path: Path) -> CheckedRun:
    """Read and check the file at `path`. Raises `RefusedError` with every violation."""
    return check_run(_read_yaml(path))


def check_run(tree: Mapping[str, Any]) -> CheckedRun:
    """Check a configuration as read from YAML. Raises `RefusedError` with every violation."""
    base, faults = _read_base(tree)
    merged = with_defaults(tree, base) if base else dict(tree)
    configuration, found = _parse(merged)
    faults += found
    if configuration is None:
        raise RefusedError(faults)
    bad = {fault.field for fault in found}
    impossible = (*_impossible(configuration, merged), *_unfitting(configuration, base))
    faults += [fault for fault in impossible if fault.field not in bad]
    side = configuration.pictures.side or (base.native_side if base else 0)
    instances, class_pictures, picture_faults = _find_all(configuration, side, bad)
    faults += picture_faults
    if faults or base is None:
        raise RefusedError(faults)
    return CheckedRun(
        configuration=configuration,
        base=base,
        side=side,
        instances=instances,
        class_pictures=class_pictures,
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    field = str(path)
    try:
        if path.stat().st_size > _MAX_CONFIGURATION_BYTES:
            raise RefusedError([violation(field, "TOO_LARGE", "must be smaller than 1 MiB")])
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RefusedError([violation(field, "UNREADABLE", str(error))]) from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise RefusedError([violation(field, "UNREADABLE", "must hold a mapping of names")])
    return tree


def _read_base(tree: Mapping[str, Any]) -> tuple[BaseModel | None, list[FieldViolation]]:
    folder = tree.get("base_model")
    if not isinstance(folder, str | Path):
        return None, []  # reported as missing or of the wrong type with the other fields
    try:
        return read_base_model(Path(folder)), []
    except BaseModelError as error:
        return None, [violation("base_model", "UNUSABLE_BASE", str(error))]


def _parse(tree: Mapping[str, Any]) -> tuple[RunConfiguration | None, list[FieldViolation]]:
    """The configuration, without what is wrong in it where it can do without, and the faults."""
    try:
        return RunConfiguration.model_validate(tree), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    faults = [
        violation(
            _path(detail["loc"]),
            "UNKNOWN_KEY" if detail["type"] == "extra_forbidden" else detail["type"].upper(),
            "is not a setting" if detail["type"] == "extra_forbidden" else detail["msg"],
        )
        for detail in details
    ]
    rest = deepcopy(dict(tree))
    for detail in details:
        _drop(rest, detail["loc"])
    try:
        return RunConfiguration.model_validate(rest), faults
    except ValidationError:
        return None, faults


def _drop(tree: dict[str, Any], location: tuple[int | str, ...]) -> None:
    """Remove the named value that `location` leads to; a part of a list takes the list along."""
    holder: Any = tree
    for index, key in enumerate(location):
        following = location[index + 1] if index + 1 < len(location) else None
        if not isinstance(holder, dict) or key not in holder:
            return
        if following is None or not isinstance(holder[key], dict):
            del holder[key]
            return
        holder = holder[key]


def _path(location: tuple[int | str, ...]) -> str:
    names = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(names).removeprefix(".")


def _impossible(c: RunConfiguration, tree: Mapping[str, Any]) -> Iterator[FieldViolation]:
    """Settings that are legal each and not together."""
    optimization = c.optimization
    if c.method == "full" and tree.get("lora") is not None:
        yield _impossible_at("lora", "has no meaning with method full")
    if optimization.train_text_encoder and optimization.cache_text_embeddings:
        yield _impossible_at(
            "optimization.cache_text_embeddings", "needs train_text_encoder: false"
        )
    if c.pictures.crop == "random" and c.pictures.cache_latents:
        yield _impossible_at("pictures.cache_latents", "needs crop: center")
    if optimization.warmup_step_count > optimization.step_count:
        yield _impossible_at("optimization.warmup_step_count", "must not exceed step_count")
    if optimization.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        message = "adamw_8bit needs the package bitsandbytes, which is not installed; use adamw"
        yield violation("optimization.optimizer", "NOT_INSTALLED", message)
    if optimization.precision == "float16" and c.device.accelerator == "cpu":
        yield _impossible_at("optimization.precision", "float16 needs CUDA; use bfloat16")
    prompts = {"instance.prompt": c.instance.prompt} if not c.instance.captions else {}
    for field, prompt in prompts.items():
        if c.instance.token not in prompt.split():
            yield _impossible_at(field, f"must have the token {c.instance.token!r} as a word")
    if c.prior is not None and c.instance.token in c.prior.prompt.split():
        yield _impossible_at("prior.prompt", f"must not have the token {c.instance.token!r}")
    if (
        c.prior is not None
        and c.prior.images is not None
        and "image_count" in c.prior.model_fields_set
    ):
        yield _impossible_at("prior.image_count", "has no meaning where images are given")


def _impossible_at(field: str, description: str) -> FieldViolation:
    return violation(field, "IMPOSSIBLE_COMBINATION", description)


def _unfitting(c: RunConfiguration, base: BaseModel | None) -> Iterator[FieldViolation]:
    side = c.pictures.side
    if base is None:
        return
    if base.prediction_type == "flow" and c.optimization.min_snr_gamma is not None:
        yield _impossible_at(
            "optimization.min_snr_gamma", "has no meaning for this base model, a rectified flow"
        )
    largest = side or base.native_side
    sizes = bucket_sizes(largest, base.side_multiple, c.pictures.aspect)
    if base.most_side is not None and max(map(max, sizes)) > base.most_side:
        yield violation(
            "pictures.side",
            "TOO_LARGE",
            f"this base model takes at most {base.most_side} pixels a side; "
            f"{largest} with aspect {c.pictures.aspect} gives {max(map(max, sizes))}",
        )
    if side is not None and side % base.side_multiple:
        yield violation(
            "pictures.side",
            "NOT_A_MULTIPLE",
            f"must be a multiple of {base.side_multiple} with this base model; got {side}",
        )


def _find_all(
    c: RunConfiguration, side: int, bad: set[str]
) -> tuple[tuple[Picture, ...], tuple[Picture, ...], list[FieldViolation]]:
    instances, faults = find_pictures(
        c.instance.images, field="instance.images", side=side, captions=c.instance.captions
    )
    if c.prior is None or c.prior.images is None or "prior.images" in bad:
        return instances, (), list(faults)
    others, other_faults = find_pictures(
        c.prior.images, field="prior.images", side=side, captions=False
    )
    return instances, others, [*faults, *other_faults]
