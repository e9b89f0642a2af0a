"""GenerateImage as the relay sees it: defaults of the model, limits of the tier, price, seed.

Used by `relay_servicer`. It judges nothing that the diffusion server judges; a request that the
server will refuse is priced all the same, and refunded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from limner.v1 import generation_pb2, model_pb2
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
from services.runtime.errors import FieldViolation, InvalidRequestError

GENERATION_SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name

# First byte of a serialized event that holds an artifact chunk: its field number and wire type.
_ARTIFACT_TAG = generation_pb2.GenerateImageResponse.ARTIFACT_FIELD_NUMBER << 3 | 2
_SEED_BYTES = 4
# No server draws as much. Products of these stay far below 2^53, where a store's numbers are exact.
_MOST_MILLICREDITS = 10**12
_MOST_SAMPLES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class _Size:
    """What a request asks for, defaults filled in and absurd values made harmless."""

    width: int
    height: int
    step_count: int
    sample_count: int


class GenerationMethod:
    """A `RelayedMethod` with the rates of `prices` at the time of a request."""

    service = GENERATION_SERVICE
    name = "GenerateImage"
    label = "generation"
    scope: Scope = "generate"
    tasks: frozenset[int] = frozenset(
        {
            model_pb2.TASK_TEXT_TO_IMAGE,
            model_pb2.TASK_IMAGE_TO_IMAGE,
            model_pb2.TASK_INPAINTING,
            model_pb2.TASK_CONTROL,
        }
    )

    def __init__(self, prices: Prices) -> None:
        self._prices = prices

    def read(self, payload: bytes) -> generation_pb2.GenerateImageRequest:
        """See `RelayedMethod`."""
        try:
            return generation_pb2.GenerateImageRequest.FromString(payload)
        except DecodeError:
            violation = FieldViolation(
                field="", reason="MALFORMED", description="is not a GenerateImageRequest"
            )
            raise InvalidRequestError([violation]) from None

    def take(
        self,
        asked: generation_pb2.GenerateImageRequest,
        payload: bytes,
        find_model: FindModel,
        tier: Tier,
    ) -> Order:
        """See `RelayedMethod`."""
        model = find_model(asked.model)
        if asked.model != model.name:
            # Joined messages merge and the last value of a field wins: this sets the model.
            payload += generation_pb2.GenerateImageRequest(model=model.name).SerializeToString()
        size = _size(asked, model.listing.defaults)
        price = self._prices.current.price_artifact(
            model=model.name, width=size.width, height=size.height, step_count=size.step_count
        )
        return Order(
            model=model.name,
            payload=payload,
            artifact_millicredits=min(price, _MOST_MILLICREDITS),
            artifact_count=min(size.sample_count, _MOST_SAMPLES),
            has_chances=not asked.HasField("seed"),
            excesses=tuple(_excesses(size, tier)),
        )

    def settle(self, payload: bytes, digest: bytes) -> bytes:
        """See `RelayedMethod`: a seed that the caller left out."""
        seed = int.from_bytes(digest[:_SEED_BYTES], "little")
        return payload + generation_pb2.GenerateImageRequest(seed=seed).SerializeToString()

    def artifact_in(self, event: bytes) -> ChunkHead | None:
        """See `RelayedMethod`."""
        return chunk_head(event, _ARTIFACT_TAG)


def _size(asked: generation_pb2.GenerateImageRequest, defaults: model_pb2.ImageDefaults) -> _Size:
    width = asked.width if asked.HasField("width") else defaults.width
    height = asked.height if asked.HasField("height") else defaults.height
    steps = asked.step_count if asked.HasField("step_count") else defaults.step_count
    samples = asked.sample_count if asked.HasField("sample_count") else 1
    return _Size(
        width=max(0, width),
        height=max(0, height),
        step_count=max(0, steps),
        sample_count=max(1, samples),
    )


def _excesses(size: _Size, tier: Tier) -> Iterator[FieldViolation]:
    pixels = size.width * size.height
    if pixels > tier.max_pixels:
        for field in ("width", "height"):
            yield _excess(field, f"width × height must be at most {tier.max_pixels}", pixels, tier)
    if size.step_count > tier.max_step_count:
        allowed = f"must be at most {tier.max_step_count}"
        yield _excess("step_count", allowed, size.step_count, tier)
    if size.sample_count > tier.max_sample_count:
        allowed = f"must be at most {tier.max_sample_count}"
        yield _excess("sample_count", allowed, size.sample_count, tier)


def _excess(field: str, allowed: str, got: int, tier: Tier) -> FieldViolation:
    text = f"{allowed} in the tier {tier.name!r}; got {got}"
    return FieldViolation(field=field, reason=TIER_LIMIT, description=text)
