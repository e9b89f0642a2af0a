"""The upscale server's settings, from variables that begin with LIMNER_UPSCALE_."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.graphs.graph import DeviceName, PrecisionName, RuntimeName
from services.runtime.settings import Address, CommaSeparated
from services.runtime.tls import ServerTlsSettings
from services.upscale.batching import BatcherLimits
from services.upscale.model import DeviceOptions

_MEGA = 1_000_000
_SHIPPED = Path(__file__).parents[2] / "models/upscalers"


class UpscaleSettings(ServerTlsSettings):
    """What `python -m services.upscale` needs."""

    model_config = SettingsConfigDict(env_prefix="LIMNER_UPSCALE_")

    address: Address = Address("127.0.0.1:50062")
    metrics_address: Address = Address("127.0.0.1:9466")
    health_address: Address | None = None
    """For health checks in plain text, where the address itself speaks TLS; absent: none."""
    folders: CommaSeparated[Path] = Field(default=(_SHIPPED,), min_length=1)
    """Folders of models: sub-folders with an `upscaler.json`, and bare `.safetensors` or `.pth`."""
    models: CommaSeparated[str] = ()
    """Names of the models to serve; empty: all whose weights are here."""
    default_model: str = ""
    """For requests that name no model; empty: the first of `models`."""
    runtime: RuntimeName = "auto"
    device: DeviceName = "auto"
    precision: PrecisionName = "auto"
    """`int8`: compact networks compute in 8 bits on a CPU, 1.3 levels of 255 off in the mean."""
    threads: int | None = Field(default=None, ge=1)
    """Threads that compute on a CPU; absent: one for every core that this process may use."""
    max_output_megapixels: float = Field(default=100.0, gt=0.0, le=2000.0)
    """Largest artifact, in millions of pixels."""
    max_held_megapixels: float = Field(default=400.0, gt=0.0)
    """Output of all requests together; further ones are refused with QUEUE_FULL. While its request
    runs a million pixels costs at most 7 MB as a PNG, 9 as a JPEG, 14 as a WebP; see ADR 24."""
    max_queued_requests: int = Field(default=64, ge=1)
    """Requests that may wait; further ones are refused with QUEUE_FULL."""
    max_tile_side: int | None = Field(default=None, ge=64)
    """Smaller tiles than the models advise: less memory and quicker cancelling, more overlap."""
    grace_s: float = Field(default=30.0, ge=0.0)
    """How long requests may go on after SIGTERM."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    cache_dir: Path = Path(".cache/limner")
    """Where exported graphs are kept."""

    @model_validator(mode="after")
    def _default_is_served(self) -> Self:
        if self.default_model and self.models and self.default_model not in self.models:
            names = ", ".join(self.models)
            raise ValueError(f"default_model {self.default_model!r} is none of {names}")
        return self

    @property
    def max_output_pixels(self) -> int:
        """Pixels of the largest artifact."""
        return int(self.max_output_megapixels * _MEGA)

    def device_options(self) -> DeviceOptions:
        """Return what networks are run with."""
        return DeviceOptions(
            runtime=self.runtime,
            device=self.device,
            precision=self.precision,
            thread_count=self.threads,
            cache_dir=self.cache_dir,
            max_tile_side=self.max_tile_side,
        )

    def batcher_limits(self) -> BatcherLimits:
        """Return what the batcher may take on."""
        return BatcherLimits(
            max_queued_requests=self.max_queued_requests,
            max_held_pixels=int(self.max_held_megapixels * _MEGA),
        )
