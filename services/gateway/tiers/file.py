"""The YAML file of tiers: read, checked, every mistake reported at once.

    tiers:
      research:
        requests_per_minute: 120
        burst: 30
        concurrent_requests: 8
        monthly_requests: null        # null: without limit
        monthly_millicredits: 5000000 # 5000 credits
        models: ["*"]                 # shell patterns
        max_pixels: 1048576
        max_step_count: 100
        max_sample_count: 8
        max_upscaled_megapixels: 64
        priority: 1                   # one more is twice the share of a busy device
        queue_share: 0.5
        shadow: false                 # may be left out; true measures limits without enforcing them

Every other field is required, so that no limit is a surprise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from services.gateway.configuration_file import read_configuration
from services.gateway.tiers.tier import Tier

_MAX_COUNT = 2**31 - 1
_MAX_AMOUNT = 2**53

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,98}[a-z0-9])?$")]
_Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Count = Annotated[int, Field(ge=1, le=_MAX_COUNT)]
_Quota = Annotated[int | None, Field(ge=0, le=_MAX_AMOUNT)]


class _Entry(BaseModel):
    """A tier as the file has it; its name is the key that it stands under."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    requests_per_minute: _Count
    burst: _Count
    concurrent_requests: _Count
    monthly_requests: _Quota
    monthly_millicredits: _Quota
    models: Annotated[list[_Pattern], Field(min_length=1)]
    max_pixels: _Count
    max_step_count: _Count
    max_sample_count: _Count
    max_upscaled_megapixels: _Count
    priority: Annotated[int, Field(ge=-1000, le=1000)]
    queue_share: Annotated[float, Field(gt=0, le=1)]
    shadow: bool = False


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    tiers: dict[_Name, _Entry]


def read_tiers(path: Path) -> Mapping[str, Tier]:
    """The tiers in the file at `path`, by name. Raises ConfigurationFileError."""
    entries = read_configuration(path, _File).tiers
    return {name: _tier(name, entry) for name, entry in entries.items()}


def _tier(name: str, entry: _Entry) -> Tier:
    values = entry.model_dump()
    values["models"] = tuple(entry.models)
    return Tier(name=name, **values)
