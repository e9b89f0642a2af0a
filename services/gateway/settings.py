"""The gateway's settings, from variables that begin with LIMNER_GATEWAY_."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.gateway.pepper import MIN_PEPPER_LENGTH
from services.gateway.pool import DNS_SCHEME
from services.runtime.settings import Address, CommaSeparated, Settings

_DATABASE_URL = SecretStr("sqlite+aiosqlite:///limner-data/gateway.db")


def _check_backend(target: str) -> str:
    if Address(target.removeprefix(DNS_SCHEME)).port == 0:
        raise ValueError(f"a backend has a port of its own, got {target!r}")
    return target


Backend = Annotated[str, AfterValidator(_check_backend)]
"""host:port, or dns:///host:port for every address of a name."""


class KeySettings(Settings):
    """What `limner keys` needs: where the keys are, and their pepper."""

    model_config = SettingsConfigDict(env_prefix="LIMNER_GATEWAY_")

    database_url: SecretStr = _DATABASE_URL
    """Secret, as it may hold a password."""
    key_pepper: Annotated[SecretStr, Field(min_length=MIN_PEPPER_LENGTH)] | None = None
    """Absent: the file `pepper` beside a SQLite database."""


class GatewaySettings(Settings):
    """What `python -m services.gateway` needs."""

    model_config = SettingsConfigDict(env_prefix="LIMNER_GATEWAY_")

    address: Address = Address("127.0.0.1:50051")
    metrics_address: Address = Address("127.0.0.1:9464")
    database_url: SecretStr = _DATABASE_URL
    """Secret, as it may hold a password."""
    key_pepper: SecretStr = Field(min_length=MIN_PEPPER_LENGTH)
    backends: CommaSeparated[Backend] = Field(min_length=1)
    default_model: str = ""
    """For requests that name no model; empty: the only model, when there is just one."""
    keepalive_time_s: float = Field(default=10.0, ge=10.0)
    """A backend that stays silent for this long is asked for a sign of life; backends refuse to be
    asked more often than every 10 s."""
    grace_s: float = Field(default=30.0, ge=0.0)
    """How long streams may go on after SIGTERM."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
