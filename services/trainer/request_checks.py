"""From a request to the configuration of a run; everything that is wrong with it, at once.

Called by `trainings` on a thread: it reads files. Paths are the server's alone: settings that a
client sends cannot name one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from services.runtime.errors import FieldViolation, InvalidRequestError
from services.trainer.datasets import CAPTION_SUFFIX
from services.trainer.job import JobRequest, JobWarning
from services.trainer.run.base_model import BaseModel
from services.trainer.run.reading import check_run
from services.trainer.run.violations import RefusedError
from services.trainer.tables import MAX_KEY_LENGTH
from services.trainer.token_check import token_warnings
from services.trainer.webhook_client import WebhookClient

_MAX_YAML_BYTES = 64 * 1024
_MAX_DEPTH = 8
_SECTIONS = ("lora", "pictures", "optimization", "validation", "prior", "checkpoint_interval")
_METHODS = ("lora", "full")
# What `services.diffusion` draws with. The others can be trained and not be served yet.
_SERVED_FAMILIES = ("sd1",)
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
# Fields of a run that have one of their own in the request.
_FIELDS = {
    "base_model": "base_model",
    "method": "method",
    "instance.prompt": "instance_prompt",
    "instance.token": "token",
    "prior.prompt": "class_prompt",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedRequest:
    """A request that can be stored."""

    tree: Mapping[str, Any]
    """Configuration of the run, the server's paths included."""
    step_count: int
    """Optimizer steps."""
    warnings: tuple[JobWarning, ...]


def check_request(
    request: JobRequest,
    *,
    idempotency_key: str,
    bases: Mapping[str, Path],
    dataset: Path | None,
    output: Path,
    class_image_cache: Path,
    webhooks: WebhookClient,
    allow_unserved: bool,
) -> CheckedRequest:
    """From a request to its run. Raises `InvalidRequestError` with every violation.

    A base model whose outcome cannot be drawn with is one, unless `allow_unserved`, which leaves it
    at a warning.
    """
    faults = list(_own_faults(request, idempotency_key, bases, dataset))
    if request.webhook_url or request.webhook_secret:
        faults += webhooks.violations(request.webhook_url, request.webhook_secret)
    settings, setting_faults = _settings(request.configuration_yaml)
    faults += setting_faults
    tree = {
        **settings,
        "base_model": str(bases.get(request.base_model, "")),
        "output": str(output),
        "class_image_cache": str(class_image_cache),
        "method": request.method,
        "instance": {
            "images": str(dataset or ""),
            "prompt": request.instance_prompt,
            "token": request.token,
            "captions": dataset is not None and any(dataset.glob(f"*{CAPTION_SUFFIX}")),
        },
        "tracking": {"tensorboard": True},
    }
    prior = settings.get("prior", {})
    if request.class_prompt:
        tree["prior"] = {**prior, "prompt": request.class_prompt} if _is_map(prior) else prior
    elif prior:
        faults.append(_fault("class_prompt", "REQUIRED", "must be set where prior has settings"))
        del tree["prior"]
    known = {fault.field for fault in faults}
    run, unserved = None, None
    try:
        run = check_run(tree)
        unserved = _unserved(run.base)
        if unserved is not None and not allow_unserved:
            faults.append(_fault("base_model", "NOT_SERVED", unserved))
    except RefusedError as error:
        renamed = (_renamed(found) for found in error.violations)
        faults += [fault for fault in renamed if fault.field not in known]
    if faults or run is None:
        raise InvalidRequestError(faults)
    return CheckedRequest(
        tree=tree,
        step_count=run.configuration.optimization.step_count,
        warnings=(
            *token_warnings(request.token, bases[request.base_model]),
            *_unserved_warnings(unserved),
        ),
    )


def _unserved(base: BaseModel) -> str | None:
    """Why nothing draws with what comes out of a base model; None where something does."""
    if base.family in _SERVED_FAMILIES:
        return None
    return (
        f"is of the {base.parts.title} architecture: it can be trained, "
        "but this version cannot draw with the outcome yet"
    )


def _unserved_warnings(unserved: str | None) -> tuple[JobWarning, ...]:
    if unserved is None:
        return ()
    message = f"The base model {unserved}; the files stay with the operator."
    return (JobWarning(code="MODEL_NOT_SERVED", message=message, field="base_model"),)


def _own_faults(
    request: JobRequest, key: str, bases: Mapping[str, Path], dataset: Path | None
) -> list[FieldViolation]:
    faults: list[FieldViolation] = []
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        allowed = f"must have 1 to {MAX_KEY_LENGTH} characters; got {len(key)}"
        faults.append(_fault("idempotency_key", "OUT_OF_RANGE", allowed))
    if request.base_model not in bases:
        there_is = ", ".join(sorted(bases)) or "none"
        faults.append(
            _fault("base_model", "UNKNOWN_MODEL", f"no model of this name; there is: {there_is}")
        )
    if dataset is None:
        allowed = "no such dataset; upload the pictures first"
        faults.append(_fault("dataset_id", "UNKNOWN_DATASET", allowed))
    if request.model_name and _MODEL_NAME.fullmatch(request.model_name) is None:
        allowed = "is 1 to 63 characters of a-z, 0-9, '.', '_', '-', the first a letter or digit"
        faults.append(_fault("model_name", "INVALID_NAME", allowed))
    if request.method not in _METHODS:
        allowed = f"is not known; one of {', '.join(_METHODS)}"
        faults.append(_fault("method", "UNKNOWN_METHOD", allowed))
    return faults


def _settings(text: str) -> tuple[dict[str, Any], list[FieldViolation]]:
    """Settings in a client's YAML, without those that it may not set."""
    field = "configuration_yaml"
    if len(text.encode()) > _MAX_YAML_BYTES:
        return {}, [_fault(field, "TOO_LARGE", f"must have at most {_MAX_YAML_BYTES} bytes")]
    try:
        _check_shape(text)
        tree = yaml.safe_load(text) if text.strip() else {}
        # Bytes, sets and halves of characters could be neither stored nor told of.
        json.dumps(tree, ensure_ascii=False).encode()
    except (yaml.YAMLError, ValueError, TypeError) as error:
        return {}, [_fault(field, "UNREADABLE", f"is no usable YAML: {error}")]
    if not _is_map(tree):
        return {}, [_fault(field, "UNREADABLE", "must hold a mapping of names")]
    faults = [
        _fault(f"{field}.{key}", "UNKNOWN_KEY", f"may be set: {', '.join(_SECTIONS)}")
        for key in tree
        if key not in _SECTIONS
    ]
    settings = {key: value for key, value in tree.items() if key in _SECTIONS}
    prior: Any = settings.get("prior")
    if _is_map(prior):
        for key in ("images", "prompt"):
            if key in prior:
                place = f"{field}.prior.{key}"
                faults.append(_fault(place, "UNKNOWN_KEY", "cannot be set here"))
        settings["prior"] = {k: v for k, v in prior.items() if k not in ("images", "prompt")}
    return settings, faults


def _check_shape(text: str) -> None:
    """Raise ValueError over what would cost more to load than it is long."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not allowed")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")


def _renamed(fault: FieldViolation) -> FieldViolation:
    if fault.field.startswith("instance.images"):
        return replace(fault, field="dataset_id")
    field = _FIELDS.get(fault.field, f"configuration_yaml.{fault.field}")
    return replace(fault, field=field)


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _fault(field: str, reason: str, description: str) -> FieldViolation:
    return FieldViolation(field=field, reason=reason, description=description)
