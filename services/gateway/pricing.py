"""What work costs: a table of rates, in integer millicredits (1 credit is 1000).

Admission asks for the estimate of a request and for the price of each artifact that was delivered.
An estimate is the exact sum of its artifacts' prices, so that a reservation is never too small.
Nothing here knows an account or a tier. A platform team sets its own prices with a file:

    generation:                  # a million pixels in one denoising step
      - {models: "sdxl*", millicredits: 64}
      - {models: "*", millicredits: 32}
    upscale:                     # a million pixels of output
      - {models: "*", millicredits: 50}
    training:                    # an optimizer step
      - {models: "*", millicredits: 20}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.gateway.configuration_file import read_configuration
from services.gateway.model_pattern import ANY_MODEL, matches_model

_PIXELS_PER_MEGAPIXEL = 1_000_000
MAX_RATE = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """What one unit of work costs on the models that match a shell pattern."""

    models: str
    millicredits: int

    def __post_init__(self) -> None:
        """Raise ValueError for a rate that is negative or absurd."""
        if not 0 <= self.millicredits <= MAX_RATE:
            raise ValueError(f"a rate is 0 to {MAX_RATE} millicredits, not {self.millicredits}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceTable:
    """Rates by kind of work; the first rate whose pattern matches a model counts.

    Each list ends with the pattern `*`, so that no model is without a price; ValueError otherwise.
    Every price is rounded up to a whole millicredit.
    """

    generation: tuple[Rate, ...]
    """For a million pixels in one denoising step."""
    upscale: tuple[Rate, ...]
    """For a million pixels of output."""
    training: tuple[Rate, ...]
    """For one optimizer step."""

    def __post_init__(self) -> None:
        """Raise ValueError when a model could be left without a price."""
        for kind in ("generation", "upscale", "training"):
            rates: tuple[Rate, ...] = getattr(self, kind)
            if not rates or rates[-1].models != ANY_MODEL:
                raise ValueError(f"{kind}: the last rate must be for the models '*'")

    def price_artifact(self, *, model: str, width: int, height: int, step_count: int) -> int:
        """The price of one generated picture."""
        rate = _rate(self.generation, model)
        return _divided(rate * width * height * step_count, _PIXELS_PER_MEGAPIXEL)

    def price_generation(
        self, *, model: str, width: int, height: int, step_count: int, sample_count: int
    ) -> int:
        """The price of a whole request: that of its pictures together."""
        artifact = self.price_artifact(
            model=model, width=width, height=height, step_count=step_count
        )
        return artifact * sample_count

    def price_upscale(self, *, model: str, output_pixels: int) -> int:
        """The price of one upscaled picture."""
        return _divided(_rate(self.upscale, model) * output_pixels, _PIXELS_PER_MEGAPIXEL)

    def price_training(self, *, model: str, step_count: int) -> int:
        """The price of that many optimizer steps."""
        return _rate(self.training, model) * step_count


class Prices(Protocol):
    """Where the prices of now are, as `FollowedFile` has them."""

    @property
    def current(self) -> PriceTable:
        """The prices of now."""


DEFAULT_PRICES = PriceTable(
    generation=(Rate(models=ANY_MODEL, millicredits=32),),  # 1024 × 1024, 30 steps: 1.007 credits
    upscale=(Rate(models=ANY_MODEL, millicredits=50),),  # 2048 × 2048: 0.21 credits
    training=(Rate(models=ANY_MODEL, millicredits=20),),  # 1000 steps: 20 credits
)


class _RateEntry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    models: Annotated[str, Field(min_length=1)]
    millicredits: Annotated[int, Field(ge=0, le=MAX_RATE)]


def _check_rates(rates: list[_RateEntry]) -> list[_RateEntry]:
    if not rates or rates[-1].models != ANY_MODEL:
        raise ValueError("the last rate must be for the models '*'")
    return rates


_Rates = Annotated[list[_RateEntry], AfterValidator(_check_rates)]


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    generation: _Rates
    upscale: _Rates
    training: _Rates


def read_prices(path: Path | None) -> PriceTable:
    """The prices in a file; `DEFAULT_PRICES` for None. Raises ConfigurationFileError."""
    if path is None:
        return DEFAULT_PRICES
    content = read_configuration(path, _File)
    return PriceTable(
        generation=_table(content.generation),
        upscale=_table(content.upscale),
        training=_table(content.training),
    )


def _table(entries: list[_RateEntry]) -> tuple[Rate, ...]:
    return tuple(Rate(models=each.models, millicredits=each.millicredits) for each in entries)


def _rate(rates: tuple[Rate, ...], model: str) -> int:
    """A trained model costs what its base costs."""
    return next(rate.millicredits for rate in rates if matches_model(rate.models, model))


def _divided(amount: int, by: int) -> int:
    """Rounded up."""
    return -(-amount // by)
