"""What the relay needs to know of a streaming method: what a request asks for, and what to charge.

`relay_servicer` does everything that methods have in common; a `RelayedMethod` is all that a
further service adds, see `generation_method`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from limner.v1 import artifact_pb2
from services.gateway.backend import ServedModel
from services.gateway.scopes import Scope
from services.gateway.tiers import Tier
from services.runtime.errors import FieldViolation

FindModel: TypeAlias = Callable[[str], ServedModel]
"""From the name in a request, maybe empty, to the model that it means; raises as the pool does."""

TIER_LIMIT = "TIER_LIMIT"
"""Reason of violations that another tier would not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a request comes to."""

    model: str
    payload: bytes
    """The request, with the model named."""
    artifact_millicredits: int
    """The price of each artifact. All of them together stay below 2^53."""
    artifact_count: int
    excesses: tuple[FieldViolation, ...] = ()
    """Where the request exceeds the tier."""


class RelayedMethod(Protocol):
    """A method that answers one request with a stream of events, some of them artifact chunks."""

    service: str
    """Full protobuf name of the service, and `name` that of the method in it."""
    name: str
    label: str
    """For metrics and the ledger, for example `generation`."""
    scope: Scope
    """What a key must be allowed to call it."""
    tasks: frozenset[int]
    """A model that does one of these serves it."""

    def take(self, payload: bytes, find_model: FindModel, tier: Tier) -> Order:
        """Resolves, prices and checks a request. Raises InvalidRequestError when it is malformed.

        Values that only a backend can judge are left to it, and priced as if they were legal.
        """

    def settle(self, payload: bytes, digest: bytes) -> bytes:
        """The payload for the backend: what the caller left to chance is settled by `digest`.

        The same digest gives the same result, so that a repetition draws the same picture.
        """

    def artifact_in(self, event: bytes) -> artifact_pb2.ArtifactChunk | None:
        """The chunk that a serialized event holds, if it holds one."""
