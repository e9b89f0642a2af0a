"""The gateway's settings, from variables that begin with LIMNER_GATEWAY_."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.gateway.pepper import MIN_PEPPER_LENGTH
from services.gateway.pool import DNS_SCHEME
from services.runtime.settings import Address, CommaSeparated, Settings
from services.runtime.tls import ClientTls, ServerTlsSettings

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


class GatewaySettings(ServerTlsSettings):
    """What `python -m services.gateway` needs."""

    model_config = SettingsConfigDict(env_prefix="LIMNER_GATEWAY_")

    address: Address = Address("127.0.0.1:50051")
    metrics_address: Address = Address("127.0.0.1:9464")
    health_address: Address | None = None
    """For health checks in plain text, where the address itself speaks TLS; absent: none."""
    database_url: SecretStr = _DATABASE_URL
    """Secret, as it may hold a password."""
    key_pepper: SecretStr = Field(min_length=MIN_PEPPER_LENGTH)
    backends: CommaSeparated[Backend] = Field(min_length=1)
    trainer: Address | None = None
    """Where the trainer is; absent: there is none, and no training service."""
    training_settle_interval_s: float = Field(default=5.0, ge=0.1)
    """How often the trainer is asked for jobs that have ended, to settle their credits."""
    backend_tls_ca: Path | None = None
    """PEM file of the authorities whose certificates backends must show; absent: plain text."""
    backend_tls_certificate: Path | None = None
    """PEM file that is shown to backends that ask for it, with `backend_tls_key`."""
    backend_tls_key: Path | None = None
    tiers_file: Path | None = None
    """YAML file of tiers, see `services.gateway.tiers.file`; absent: the built-in ones alone."""
    prices_file: Path | None = None
    """YAML file of prices, see `services.gateway.pricing`; absent: the built-in ones."""
    redis_url: SecretStr | None = None
    """Redis or Valkey that all gateways share for limits and credits, `redis://…`, `rediss://…`;
    secret, as it may hold a password. Absent: this process' memory, right for one gateway."""
    redis_timeout_s: float = Field(default=0.25, gt=0.0)
    """What Redis does not answer within is an outage, see `services.gateway.admission.control`."""
    replica_count: int = Field(default=1, ge=1)
    """How many gateways share the limits: what each allows by itself while Redis is away."""
    lease_s: float = Field(default=30.0, ge=1.0)
    """How soon what a gateway held is given back when it dies."""
    reconcile_interval_s: float = Field(default=60.0, ge=1.0)
    """How often balances are compared with the ledger."""
    default_model: str = ""
    """For requests that name no model; empty: the only model, when there is just one."""
    keepalive_time_s: float = Field(default=10.0, ge=10.0)
    """A backend that stays silent for this long is asked for a sign of life; backends refuse to be
    asked more often than every 10 s."""
    grace_s: float = Field(default=30.0, ge=0.0)
    """How long streams may go on after SIGTERM."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _backend_tls_is_whole(self) -> Self:
        prefix = "LIMNER_GATEWAY_BACKEND_TLS_"
        if (self.backend_tls_certificate is None) != (self.backend_tls_key is None):
            raise ValueError(f"{prefix}CERTIFICATE and {prefix}KEY go together")
        if self.backend_tls_certificate is not None and self.backend_tls_ca is None:
            raise ValueError(f"{prefix}CERTIFICATE needs {prefix}CA")
        return self

    def backend_tls(self) -> ClientTls | None:
        """For the channels to the backends; None: plain text."""
        if self.backend_tls_ca is None:
            return None
        return ClientTls(
            ca=self.backend_tls_ca,
            certificate=self.backend_tls_certificate,
            key=self.backend_tls_key,
        )
