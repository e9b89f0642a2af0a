"""The diffusion server's settings, from variables that begin with LIMNER_DIFFUSION_."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.diffusion.model import ModelSpec
from services.graphs.graph import DeviceName, PrecisionName, RuntimeName
from services.runtime.settings import Address, CommaSeparated
from services.runtime.tls import ServerTlsSettings
from services.storage.catalog import SEPARATOR


def _check_model(entry: str) -> str:
    name, equals, source = entry.partition("=")
    if not (equals and name.strip() and source.strip()):
        raise ValueError(f"a model is name=folder or name=hub id, got {entry!r}")
    if SEPARATOR in name:
        raise ValueError(f"{SEPARATOR} in a name is for trained models, got {entry!r}")
    return entry


def _check_names(entries: tuple[str, ...]) -> tuple[str, ...]:
    names = [_split_model(entry)[0] for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two models have the name {', '.join(twice)}")
    return entries


def _split_model(entry: str) -> tuple[str, str]:
    name, _, source = entry.partition("=")
    return name.strip(), source.strip()


ModelEntry = Annotated[str, AfterValidator(_check_model)]
"""name=folder or name=hub id."""


class DiffusionSettings(ServerTlsSettings):
    """What `python -m services.diffusion` needs."""

    model_config = SettingsConfigDict(env_prefix="LIMNER_DIFFUSION_")

    address: Address = Address("127.0.0.1:50061")
    metrics_address: Address = Address("127.0.0.1:9465")
    health_address: Address | None = None
    """For health checks in plain text, where the address itself speaks TLS; absent: none."""
    models: Annotated[CommaSeparated[ModelEntry], AfterValidator(_check_names)] = Field(
        default=("limner-emoji=models/limner-emoji",), min_length=1
    )
    default_model: str = ""
    """For requests that name no model; empty: the only model, when there is just one."""
    runtime: RuntimeName = "auto"
    device: DeviceName = "auto"
    threads: int | None = Field(default=None, ge=1)
    """Threads that compute on a CPU; absent: one for every core that this process may use."""
    precision: PrecisionName = "auto"
    """`int8`: convolutions in 8 bits, on a CPU alone; pictures differ by a level or two of 255."""
    compiled: bool = False
    """On CUDA, run through `torch.compile`."""
    catalog_dir: Path | None = None
    """The trainer's catalogue, whose models are drawn with as well; absent: none."""
    max_trained_models: int = Field(default=2, ge=1)
    """Trained models that are loaded at a time; another takes the place of one that does not draw.
    """
    trained_runtime: RuntimeName = "torch"
    """What trained models run on: torch needs no export, so that they draw within seconds."""
    max_batch_rows: int | None = Field(default=None, ge=2)
    """Rows of a denoiser call, of which a guided picture takes two; absent: the model's advice."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Requests that may wait; further ones are refused with QUEUE_FULL."""
    grace_s: float = Field(default=30.0, ge=0.0)
    """How long requests may go on after SIGTERM."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    cache_dir: Path = Path(".cache/limner")
    """Where exported graphs are kept."""

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        names = [spec.name for spec in self.model_specs()]
        if self.default_model and self.default_model not in names:
            raise ValueError(f"default_model {self.default_model!r} is none of {', '.join(names)}")
        return self

    def model_specs(self) -> list[ModelSpec]:
        """Return what to load, in the order of the setting."""
        return [
            ModelSpec(
                name=name,
                path_or_hub_id=source,
                runtime=self.runtime,
                device=self.device,
                thread_count=self.threads,
                precision=self.precision,
                compiled=self.compiled,
                cache_dir=self.cache_dir,
            )
            for name, source in map(_split_model, self.models)
        ]
