"""What a local suite is made of: ports, folders, and the environment of each service.

Filled in by `services.local.cli`. The services' own variables (LIMNER_DIFFUSION_THREADS and the
like) pass through; those that tie the suite together are set here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from services.local.data_folder import DataFolder
from services.local.ports import HOST, free_port, is_free
from services.local.process import ServiceSpec

DEFAULT_PORT = 50051
_GATEWAY_METRICS_PORT = 9464
_DIFFUSION_METRICS_PORT = 9465
_UPSCALE_METRICS_PORT = 9466
_TRAINER_METRICS_PORT = 9467
_DEFAULT_GRACE_S = 30.0
_GENERATION_SERVICE = "limner.v1.GenerationService"
_UPSCALE_SERVICE = "limner.v1.UpscaleService"
_TRAINING_SERVICE = "limner.v1.TrainingService"
_MODELS_VARIABLE = "LIMNER_DIFFUSION_MODELS"
_CACHE_VARIABLE = "LIMNER_DIFFUSION_CACHE_DIR"
_UPSCALE_CACHE_VARIABLE = "LIMNER_UPSCALE_CACHE_DIR"
_EMBEDDED_MODEL = Path(__file__).parents[2] / "models/limner-emoji"


class SetupError(Exception):
    """The suite cannot be started as asked; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteSettings:
    """A suite before it starts. All ports are on this machine only."""

    data: DataFolder
    models: str
    gateway_port: int
    gateway_metrics_port: int
    diffusion_port: int
    diffusion_metrics_port: int
    upscale_port: int
    upscale_metrics_port: int
    trainer_port: int
    trainer_metrics_port: int
    trainable: str
    """Those of `models` that are folders; empty as well where the trainer is not installed."""

    @property
    def trains(self) -> bool:
        """Whether there is a trainer."""
        return bool(self.trainable)

    @property
    def address(self) -> str:
        """Where the gateway takes requests."""
        return f"{HOST}:{self.gateway_port}"

    @property
    def metrics_urls(self) -> Mapping[str, str]:
        """Where the metrics of each service are, by its name."""
        ports = {
            "gateway": self.gateway_metrics_port,
            "diffusion": self.diffusion_metrics_port,
            "upscale": self.upscale_metrics_port,
            **({"trainer": self.trainer_metrics_port} if self.trains else {}),
        }
        return {name: f"http://{HOST}:{port}/metrics" for name, port in ports.items()}

    def gateway(self, pepper: str, *, upscales: bool = True, trains: bool = False) -> ServiceSpec:
        """Return how the gateway is started; whether it has an upscale server and a trainer."""
        ports = [self.diffusion_port, *([self.upscale_port] if upscales else [])]
        return ServiceSpec(
            name="gateway",
            module="services.gateway",
            address=self.address,
            health_service=_GENERATION_SERVICE,
            environment={
                "LIMNER_GATEWAY_ADDRESS": self.address,
                "LIMNER_GATEWAY_METRICS_ADDRESS": f"{HOST}:{self.gateway_metrics_port}",
                "LIMNER_GATEWAY_DATABASE_URL": self.data.database_url,
                "LIMNER_GATEWAY_KEY_PEPPER": pepper,
                "LIMNER_GATEWAY_BACKENDS": ",".join(f"{HOST}:{port}" for port in ports),
                **({"LIMNER_GATEWAY_TRAINER": f"{HOST}:{self.trainer_port}"} if trains else {}),
            },
            grace_s=_grace_s("LIMNER_GATEWAY_GRACE_S"),
        )

    def diffusion(self) -> ServiceSpec:
        """Return how the diffusion server is started."""
        address = f"{HOST}:{self.diffusion_port}"
        return ServiceSpec(
            name="diffusion",
            module="services.diffusion",
            address=address,
            health_service=_GENERATION_SERVICE,
            environment={
                "LIMNER_DIFFUSION_ADDRESS": address,
                "LIMNER_DIFFUSION_METRICS_ADDRESS": f"{HOST}:{self.diffusion_metrics_port}",
                _MODELS_VARIABLE: self.models,
                _CACHE_VARIABLE: os.environ.get(_CACHE_VARIABLE) or str(_user_cache()),
                "LIMNER_DIFFUSION_CATALOG_DIR": str(self.data.catalog),
            },
            grace_s=_grace_s("LIMNER_DIFFUSION_GRACE_S"),
        )

    def upscale(self) -> ServiceSpec:
        """Return how the upscale server is started."""
        address = f"{HOST}:{self.upscale_port}"
        return ServiceSpec(
            name="upscale",
            module="services.upscale",
            address=address,
            health_service=_UPSCALE_SERVICE,
            environment={
                "LIMNER_UPSCALE_ADDRESS": address,
                "LIMNER_UPSCALE_METRICS_ADDRESS": f"{HOST}:{self.upscale_metrics_port}",
                _UPSCALE_CACHE_VARIABLE: os.environ.get(_UPSCALE_CACHE_VARIABLE)
                or str(_user_cache()),
            },
            grace_s=_grace_s("LIMNER_UPSCALE_GRACE_S"),
        )

    def trainer(self) -> ServiceSpec:
        """Return how the trainer is started; its runs stand back behind what is served."""
        address = f"{HOST}:{self.trainer_port}"
        return ServiceSpec(
            name="trainer",
            module="services.trainer",
            address=address,
            health_service=_TRAINING_SERVICE,
            environment={
                "LIMNER_TRAINER_ADDRESS": address,
                "LIMNER_TRAINER_METRICS_ADDRESS": f"{HOST}:{self.trainer_metrics_port}",
                "LIMNER_TRAINER_BASE_MODELS": self.trainable,
                "LIMNER_TRAINER_DATA_DIR": str(self.data.trainer),
                "LIMNER_TRAINER_CATALOG_DIR": str(self.data.catalog),
                "LIMNER_TRAINER_RUN_NICENESS": os.environ.get("LIMNER_TRAINER_RUN_NICENESS", "10"),
            },
            grace_s=_grace_s("LIMNER_TRAINER_GRACE_S"),
        )


def plan_suite(data_dir: Path, *, port: int | None, models: str | None) -> SuiteSettings:
    """Return a suite in `data_dir`; `port` None takes any free one.

    `models` is a comma-separated list of `name=folder-or-hub-id`; None is LIMNER_DIFFUSION_MODELS,
    else the model that comes with Limner. Raises SetupError.
    """
    found = _find_models(models)
    return SuiteSettings(
        data=DataFolder(path=data_dir),
        models=found,
        gateway_port=free_port() if port is None else _check_port(port),
        gateway_metrics_port=free_port(_GATEWAY_METRICS_PORT),
        diffusion_port=free_port(),
        diffusion_metrics_port=free_port(_DIFFUSION_METRICS_PORT),
        upscale_port=free_port(),
        upscale_metrics_port=free_port(_UPSCALE_METRICS_PORT),
        trainer_port=free_port(),
        trainer_metrics_port=free_port(_TRAINER_METRICS_PORT),
        trainable=_trainable(found) if _has_trainer() else "",
    )


def _check_port(port: int) -> int:
    try:
        free = is_free(port)
    except OSError as error:
        raise SetupError(f"port {port} cannot be used: {error.strerror}") from None
    if not free:
        raise SetupError(
            f"port {port} is in use, perhaps by another `limner up`; choose one with --port"
        )
    return port


def _find_models(models: str | None) -> str:
    models = models or os.environ.get(_MODELS_VARIABLE)
    if models:
        for entry in filter(str.strip, models.split(",")):
            name, _, source = entry.partition("=")
            if not (name.strip() and source.strip()):
                message = "a model is NAME=FOLDER or NAME=HUB_ID"
                raise SetupError(f"--models or {_MODELS_VARIABLE}: {message}, got {entry!r}")
        return models
    if not _EMBEDDED_MODEL.is_dir():
        raise SetupError(f"there is no model in {_EMBEDDED_MODEL}; name one with --models")
    return f"limner-emoji={_EMBEDDED_MODEL}"


def _has_trainer() -> bool:
    return all(find_spec(name) is not None for name in ("lightning", "peft"))


def _trainable(models: str) -> str:
    """Return the entries that name a folder; the trainer fetches nothing from a hub."""
    entries = (entry.partition("=") for entry in models.split(","))
    folders = ((name.strip(), Path(source.strip()).expanduser()) for name, _, source in entries)
    return ",".join(f"{name}={folder.resolve()}" for name, folder in folders if folder.is_dir())


def _user_cache() -> Path:
    """Return where exported graphs are kept: the same place from whatever folder it is started."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limner"


def _grace_s(variable: str) -> float:
    """Return the grace that a service will read from its variable; it reports a bad one itself."""
    try:
        return float(os.environ.get(variable, _DEFAULT_GRACE_S))
    except ValueError:
        return _DEFAULT_GRACE_S
