"""The trainer's settings, from variables that begin with LIMNER_TRAINER_."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Address, CommaSeparated
from services.runtime.tls import ServerTlsSettings


def _check_base(entry: str) -> str:
    name, equals, folder = entry.partition("=")
    if not (equals and name.strip() and folder.strip()):
        raise ValueError(f"a base model is name=folder, got {entry!r}")
    return entry


class TrainerSettings(ServerTlsSettings):
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
    data_dir: Path = Path(".cache/limner/trainer")
    """Datasets, checkpoints and results."""
    database_url: str = ""
    """Where jobs are kept; empty: a SQLite file in `data_dir`."""
    max_running_jobs: int = Field(default=1, ge=1, le=64)
    max_queued_jobs: int = Field(default=100, ge=1)
    """Jobs that may wait; further ones are refused with QUEUE_FULL."""
    grace_s: float = Field(default=30.0, ge=0.0)
    """How long calls may go on after SIGTERM; runs write their checkpoints in any case."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    def bases(self) -> dict[str, Path]:
        """Base models by name."""
        pairs = (entry.partition("=") for entry in self.base_models)
        return {name.strip(): Path(folder.strip()).absolute() for name, _, folder in pairs}

    def jobs_url(self) -> str:
        """URL of the database."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'jobs.sqlite'}"
