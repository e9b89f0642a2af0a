"""The part of the trainer's settings that is about Kubernetes: LIMNER_TRAINER_KUBERNETES_*.

Nothing of it matters with the subprocess backend. It imports no client of Kubernetes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from services.runtime.settings import Address, CommaSeparated, Settings

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"(\d+(\.\d+)?|\.\d+)(m|k|[KMGTPE]i?)?")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_LEAST_KEY_CHARACTERS = 32
_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A PersistentVolumeClaim and where runs see it."""

    name: str
    path: PurePosixPath
    is_read_only: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Toleration:
    """A taint of nodes that runs put up with."""

    key: str
    value: str | None
    """None: any."""
    effect: str | None
    """None: any."""


def _check_name(name: str) -> str:
    if not all(_LABEL.fullmatch(part) for part in name.split(".")):
        raise ValueError(f"must be a name of Kubernetes (a-z, 0-9, '-', '.'), got {name!r}")
    return name


def _check_label(name: str) -> str:
    if not _LABEL.fullmatch(name):
        raise ValueError(f"must be up to 63 of a-z, 0-9 and '-', got {name!r}")
    return name


def _check_quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text):
        raise ValueError(f"must be a quantity of Kubernetes such as 500m or 16Gi, got {text!r}")
    return text


def _check_volume(entry: str) -> str:
    _parse_volume(entry)
    return entry


def _parse_volume(entry: str) -> Claim:
    name, equals, rest = entry.partition("=")
    path, _, mode = rest.partition(":")
    if not equals or mode not in ("", "ro") or not PurePosixPath(path).is_absolute():
        raise ValueError(f"a volume is claim=/path or claim=/path:ro, got {entry!r}")
    return Claim(name=_check_label(name), path=PurePosixPath(path), is_read_only=mode == "ro")


def _check_pair(entry: str) -> str:
    key, equals, _ = entry.partition("=")
    if not (equals and key):
        raise ValueError(f"must be label=value, got {entry!r}")
    return entry


def _check_toleration(entry: str) -> str:
    toleration = _parse_toleration(entry)
    if not toleration.key or toleration.effect not in (None, *_EFFECTS):
        allowed = f"key, key=value or either with :effect, of {', '.join(_EFFECTS)}"
        raise ValueError(f"a toleration is {allowed}; got {entry!r}")
    return entry


def _parse_toleration(entry: str) -> Toleration:
    taint, colon, effect = entry.partition(":")
    key, equals, value = taint.partition("=")
    return Toleration(key=key, value=value if equals else None, effect=effect if colon else None)


Name = Annotated[str, AfterValidator(_check_name)]
Label = Annotated[str, AfterValidator(_check_label)]
Quantity = Annotated[str, AfterValidator(_check_quantity)]


class KubernetesSettings(Settings):
    """How runs become Jobs."""

    backend: Literal["subprocess", "kubernetes"] = "subprocess"
    """Where runs happen: processes of this machine, or Jobs of the cluster."""
    kubernetes_namespace: Label | None = None
    """Namespace of the Jobs; required with Kubernetes."""
    kubernetes_instance: Label = "limner"
    """Tells the Jobs of this service from those of others in the namespace."""
    kubernetes_config: Path | None = None
    """A kubeconfig file; absent: the service account of the pod that the service runs in."""
    kubernetes_image: str | None = Field(default=None, min_length=1)
    """Image with Limner's extra [trainer]; required with Kubernetes."""
    kubernetes_image_pull_secrets: CommaSeparated[Name] = ()
    kubernetes_volumes: CommaSeparated[Annotated[str, AfterValidator(_check_volume)]] = ()
    """Claims that runs share with this service, as claim=/path or claim=/path:ro, seen at the same
    paths on both sides; data_dir and every base model must lie on one."""
    kubernetes_environment_secrets: CommaSeparated[Name] = ()
    """Secrets whose entries runs get as environment: of an object store, of W&B."""
    kubernetes_cpu: Quantity = "4"
    kubernetes_memory: Quantity = "24Gi"
    """What a pod asks for, and the most that it gets."""
    kubernetes_scratch: Quantity = "16Gi"
    """The most that a pod may write outside of its volumes."""
    kubernetes_gpu_count: int = Field(default=1, ge=0, le=16)
    """Devices of a pod, each for a process of the run; 0: one process on CPUs."""
    kubernetes_gpu_resource: str = "nvidia.com/gpu"
    kubernetes_node_count: int = Field(default=1, ge=1, le=64)
    """Pods of a run."""
    kubernetes_node_selector: CommaSeparated[Annotated[str, AfterValidator(_check_pair)]] = ()
    """Labels that a node must have, as label=value."""
    kubernetes_tolerations: CommaSeparated[Annotated[str, AfterValidator(_check_toleration)]] = ()
    """Taints that runs put up with, as key, key=value, key:effect or key=value:effect."""
    kubernetes_runtime_class: Name | None = None
    kubernetes_priority_class: Name | None = None
    kubernetes_queue: Name | None = None
    """Kueue's LocalQueue; a Job then starts when Kueue lets it."""
    kubernetes_user_id: int = Field(default=1000, ge=1)
    """User and group of the pods' processes, never root."""
    kubernetes_retry_count: int = Field(default=3, ge=0, le=100)
    """How often a run that failed is tried again; evictions and the like do not count."""
    kubernetes_deadline_s: int = Field(default=_DAY_S, ge=60)
    """The most that a run may take in all."""
    kubernetes_keep_s: int = Field(default=_DAY_S, ge=_DAY_S)
    """How long a Job that has ended is kept, at least a day."""
    kubernetes_grace_s: int = Field(default=120, ge=10)
    """What a run gets to write its checkpoint when it has to leave."""
    kubernetes_pending_s: float = Field(default=900.0, ge=0.0)
    """How long a run may wait for a node or an image before its job fails."""
    kubernetes_resync_s: float = Field(default=300.0, gt=0.0, le=3600.0)
    """How often everything is listed again, whatever the watches said."""
    kubernetes_reports_address: Address = Address("0.0.0.0:50064")
    """Where pods report to, beside the service's own address: they must not reach that one."""
    kubernetes_reports_target: Address | None = None
    """The same as pods see it; required with Kubernetes."""
    kubernetes_reports_ca: Path | None = None
    """PEM file of the authority that pods check this service by, where it speaks TLS."""
    kubernetes_run_key: SecretStr | None = None
    """Key of the tokens by which runs are known, at least 32 characters; required with Kubernetes.
    """

    def shared_folders(self) -> dict[str, list[Path]]:
        """Folders that must lie on a claim, by the setting that names them."""
        return {}

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The volumes, taken apart."""
        return tuple(map(_parse_volume, self.kubernetes_volumes))

    @property
    def tolerations(self) -> tuple[Toleration, ...]:
        """The tolerations, taken apart."""
        return tuple(map(_parse_toleration, self.kubernetes_tolerations))

    @property
    def node_selector(self) -> dict[str, str]:
        """The node selector, taken apart."""
        pairs = (entry.partition("=") for entry in self.kubernetes_node_selector)
        return {key: value for key, _, value in pairs}

    @model_validator(mode="after")
    def _kubernetes_is_whole(self) -> Self:
        if self.backend == "kubernetes" and (missing := list(self._missing())):
            raise ValueError("\n  ".join(missing))
        return self

    def _missing(self) -> Iterator[str]:
        prefix = str(self.model_config.get("env_prefix", ""))
        required = ("namespace", "image", "volumes", "reports_target", "run_key")
        for name in required:
            if not getattr(self, f"kubernetes_{name}"):
                yield f"{prefix}KUBERNETES_{name.upper()} is required with Kubernetes"
        key = self.kubernetes_run_key
        if key is not None and len(key.get_secret_value()) < _LEAST_KEY_CHARACTERS:
            allowed = f"must have at least {_LEAST_KEY_CHARACTERS} characters"
            yield f"{prefix}KUBERNETES_RUN_KEY=(hidden): {allowed}"
        seen = [str(claim.path) for claim in self.claims]
        if len(seen) != len(set(seen)):
            yield f"{prefix}KUBERNETES_VOLUMES: two claims at one path"
        for name, folders in self.shared_folders().items():
            for folder in folders:
                if not any(folder.is_relative_to(path) for path in seen):
                    yield f"{prefix}{name}: {folder} is on none of {prefix}KUBERNETES_VOLUMES"
