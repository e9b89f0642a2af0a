"""The trainer's settings, from variables that begin with LIMNER_TRAINER_."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Address, CommaSeparated
from services.runtime.tls import ServerTlsSettings
from services.storage.catalog import SEPARATOR
from services.trainer.cluster.settings import KubernetesSettings
from services.trainer.webhook_client import Network


def _check_base(entry: str) -> str:
    name, equals, folder = entry.partition("=")
    if not (equals and name.strip() and folder.strip()):
        raise ValueError(f"a base model is name=folder, got {entry!r}")
    if SEPARATOR in name:
        raise ValueError(f"{SEPARATOR} in a name is for trained models, got {entry!r}")
    return entry


def _check_network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


class TrainerSettings(ServerTlsSettings, KubernetesSettings):
    """What `python -m services.trainer` needs."""

    model_config = SettingsConfigDict(env_prefix="LIMNER_TRAINER_")

    address: Address = Address("127.0.0.1:50063")
    metrics_address: Address = Address("127.0.0.1:9467")
    health_address: Address | None = None
    """For health checks in plain text, where the address itself speaks TLS; absent: none."""
    base_models: CommaSeparated[Annotated[str, AfterValidator(_check_base)]] = Field(
        default=("limner-emoji=models/limner-emoji",), min_length=1
    )
    """Models that jobs may start from, as name=folder."""
    allow_unserved_models: bool = False
    """Take jobs for base models whose outcome cannot be drawn with yet (SDXL, SD3), with a warning;
    otherwise they are refused."""
    data_dir: Path = Path(".cache/limner/trainer")
    """Datasets, checkpoints and results."""
    database_url: str = ""
    """Where jobs are kept; empty: a SQLite file in `data_dir`."""
    max_running_jobs: int = Field(default=1, ge=1, le=64)
    max_queued_jobs: int = Field(default=100, ge=1)
    """Jobs that may wait; further ones are refused with QUEUE_FULL."""
    grace_s: float = Field(default=30.0, ge=0.0)
    """How long calls may go on after SIGTERM; runs write their checkpoints in any case."""
    catalog_dir: Path | None = None
    """Where trained models are kept for the diffusion server; absent: `catalog` in `data_dir`."""
    run_niceness: int = Field(default=0, ge=0, le=19)
    """How far runs that are processes of this machine stand back behind others."""
    webhook_networks: CommaSeparated[Annotated[str, AfterValidator(_check_network)]] = ()
    """Networks that webhooks may go to although they are not public, like 10.0.0.0/8."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    def shared_folders(self) -> dict[str, list[Path]]:
        """Folders that runs must see at the same paths, by the setting that names them."""
        return {"DATA_DIR": [self.data_dir.absolute()], "BASE_MODELS": list(self.bases().values())}

    def bases(self) -> dict[str, Path]:
        """Base models by name."""
        pairs = (entry.partition("=") for entry in self.base_models)
        return {name.strip(): Path(folder.strip()).absolute() for name, _, folder in pairs}

    def catalog_folder(self) -> Path:
        """Folder of the catalogue."""
        return (self.catalog_dir or self.data_dir / "catalog").absolute()

    def allowed_networks(self) -> list[Network]:
        """Networks that webhooks may go to beside the public ones."""
        return [ipaddress.ip_network(text) for text in self.webhook_networks]

    def jobs_url(self) -> str:
        """URL of the database."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'jobs.sqlite'}"
