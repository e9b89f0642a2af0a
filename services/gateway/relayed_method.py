"""What the relay needs to know of a streaming method: what a request asks for, and what to charge.

`relay_servicer` does everything that methods have in common; a `RelayedMethod` is all that a
further service adds, see `generation_method`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from limner.v1 import artifact_pb2
from services.gateway.backend import ServedModel
from services.gateway.scopes import Scope
from services.gateway.tiers import Tier
from services.gateway.wire import fields
from services.runtime.errors import FieldViolation

Asked = TypeVar("Asked")

FindModel: TypeAlias = Callable[[str], ServedModel]
"""From the name in a request, maybe empty, to the model that it means; raises as the pool does."""

TIER_LIMIT = "TIER_LIMIT"
"""Reason of violations that another tier would not have."""

_INDEX = artifact_pb2.ArtifactChunk.INDEX_FIELD_NUMBER
_DATA = artifact_pb2.ArtifactChunk.DATA_FIELD_NUMBER
_LAST = artifact_pb2.ArtifactChunk.LAST_FIELD_NUMBER


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a request comes to."""

    model: str
    payload: bytes
    """The request, with the model named."""
    artifact_millicredits: int
    """The price of each artifact. All of them together stay below 2^53."""
    artifact_count: int
    has_chances: bool = False
    """Whether the caller left something to chance, see `RelayedMethod.settle`."""
    excesses: tuple[FieldViolation, ...] = ()
    """Where the request exceeds the tier."""


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """What the relay needs to know of an artifact chunk."""

    index: int
    is_last: bool
    size_bytes: int


def chunk_head(event: bytes, tag: int) -> ChunkHead | None:
    """Of the artifact chunk in a serialized event; None: there is none.

    `tag` is the event's first byte when it is a chunk: its field's number and wire type. The
    picture's bytes are not copied. Raises WireError.
    """
    if not event or event[0] != tag:
        return None
    index, is_last, size_bytes = 0, False, 0
    for _, _, start, end in fields(event, 0, len(event)):
        for number, _, first, second in fields(event, start, end):
            if number == _INDEX:
                index = first
            elif number == _LAST:
                is_last = bool(first)
            elif number == _DATA:
                size_bytes = second - first
    return ChunkHead(index, is_last, size_bytes)


class RelayedMethod(Protocol[Asked]):
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

    def read(self, payload: bytes) -> Asked:
        """What a request asks for. Raises InvalidRequestError when it is malformed.

        Called on a thread where the request is large; it touches nothing but the payload.
        """

    def take(self, asked: Asked, payload: bytes, find_model: FindModel, tier: Tier) -> Order:
        """Resolves, prices and checks a request.

        Values that only a backend can judge are left to it, and priced as if they were legal.
        """

    def settle(self, payload: bytes, digest: bytes) -> bytes:
        """The payload for the backend where the order has chances: they are settled by `digest`.

        The same digest gives the same result, so that a repetition draws the same picture.
        """

    def artifact_in(self, event: bytes) -> ChunkHead | None:
        """The head of the chunk that a serialized event holds, if it holds one."""
