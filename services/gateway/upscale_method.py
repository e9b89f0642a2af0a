"""UpscaleImage as the relay sees it: megapixels of output, limit of the tier, price.

Used by `relay_servicer`. The size of a picture is read from its file's header with the function
that the upscale server reads it with, so that both see the same. A request that the server will
refuse is relayed all the same, for the server lists everything that is wrong, and refunded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from limner.v1 import model_pb2, upscale_pb2
from services.gateway.pricing import Prices
from services.gateway.relayed_method import (
    TIER_LIMIT,
    ChunkHead,
    FindModel,
    Order,
    chunk_head,
)
from services.gateway.scopes import Scope
from services.gateway.tiers import Tier
from services.imaging.header import ImageHeader, UnusableImageError, read_header
from services.runtime.errors import FieldViolation, InvalidRequestError

UPSCALE_SERVICE = upscale_pb2.DESCRIPTOR.services_by_name["UpscaleService"].full_name

# First byte of a serialized event that holds an artifact chunk: its field number and wire type.
_ARTIFACT_TAG = upscale_pb2.UpscaleImageResponse.ARTIFACT_FIELD_NUMBER << 3 | 2
_MEGA = 1_000_000
# No server makes as much. Prices of this stay far below 2^53, where a store's numbers are exact.
_MOST_PIXELS = 10**10
_MOST_MILLICREDITS = 10**12


@dataclass(frozen=True, kw_only=True, slots=True)
class Enlargement:
    """What a request asks for, without the picture."""

    model: str
    header: ImageHeader | None
    """None: not a picture."""
    scale: float | None
    """None: the model's."""


class UpscaleMethod:
    """A `RelayedMethod` with the rates of `prices` at the time of a request."""

    service = UPSCALE_SERVICE
    name = "UpscaleImage"
    label = "upscale"
    scope: Scope = "upscale"
    tasks: frozenset[int] = frozenset({model_pb2.TASK_UPSCALE})

    def __init__(self, prices: Prices) -> None:
        self._prices = prices

    def read(self, payload: bytes) -> Enlargement:
        """See `RelayedMethod`."""
        try:
            asked = upscale_pb2.UpscaleImageRequest.FromString(payload)
        except DecodeError:
            violation = FieldViolation(
                field="", reason="MALFORMED", description="is not an UpscaleImageRequest"
            )
            raise InvalidRequestError([violation]) from None
        try:
            header = read_header(asked.image)
        except UnusableImageError:
            header = None
        scale = asked.scale if asked.HasField("scale") else None
        return Enlargement(model=asked.model, header=header, scale=scale)

    def take(self, asked: Enlargement, payload: bytes, find_model: FindModel, tier: Tier) -> Order:
        """See `RelayedMethod`."""
        model = find_model(asked.model)
        if asked.model != model.name:
            # Joined messages merge and the last value of a field wins: this sets the model.
            payload += upscale_pb2.UpscaleImageRequest(model=model.name).SerializeToString()
        pixels = _output_pixels(asked, model.listing.upscale_limits)
        price = self._prices.current.price_upscale(model=model.name, output_pixels=pixels)
        return Order(
            model=model.name,
            payload=payload,
            artifact_millicredits=min(price, _MOST_MILLICREDITS),
            artifact_count=1,
            excesses=_excesses(pixels, tier),
        )

    def settle(self, payload: bytes, digest: bytes) -> bytes:
        """See `RelayedMethod`: nothing is left to chance."""
        return payload

    def artifact_in(self, event: bytes) -> ChunkHead | None:
        """See `RelayedMethod`."""
        return chunk_head(event, _ARTIFACT_TAG)


def _output_pixels(asked: Enlargement, limits: model_pb2.UpscaleLimits) -> int:
    """Pixels of the artifact; 0 for a request that the server will refuse."""
    header = asked.header
    scale = limits.max_scale if asked.scale is None else asked.scale
    if header is None or not math.isfinite(scale) or scale <= 0 or scale > limits.max_scale:
        return 0
    width, height = round(header.width * scale), round(header.height * scale)
    return min(max(1, width) * max(1, height), _MOST_PIXELS)


def _excesses(pixels: int, tier: Tier) -> tuple[FieldViolation, ...]:
    allowed = tier.max_upscaled_megapixels
    if pixels <= allowed * _MEGA:
        return ()
    text = (
        f"the output must have at most {allowed} megapixels in the tier {tier.name!r}; "
        f"got {pixels / _MEGA:.1f}"
    )
    return (FieldViolation(field="scale", reason=TIER_LIMIT, description=text),)
