"""A streaming method at the door: who asks, may they, what does it cost, admit, relay, charge.

Registered once for each `RelayedMethod`, without serializers: requests and events pass as the bytes
they are. A request is parsed to learn what it asks for; of the events only artifact chunks are
looked at, to charge each picture before its last bytes leave.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, ParamSpec, TypeVar

import grpc
import grpc.aio

from services.gateway.admission import Admission, AdmissionRequest, Admitted
from services.gateway.authentication import Caller, current_caller
from services.gateway.backend import ServedModel
from services.gateway.metrics import GatewayMetrics
from services.gateway.pool import BackendPool
from services.gateway.relay import relay_events
from services.gateway.relayed_method import Order, RelayedMethod
from services.gateway.tiers import Tier, TierCatalog, UnknownTierError
from services.runtime.context import RequestContext, current_request
from services.runtime.errors import InvalidRequestError, PermissionDeniedError, StateError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_DIGEST_BYTES = 16
# Longer ones are read and digested on a thread: a megabyte takes about a millisecond.
_INLINE_BYTES = 256 * 1024

_log = logging.getLogger(__name__)


class RelayServicer:
    """Serves `method` from the backends of `pool`."""

    def __init__(
        self,
        method: RelayedMethod[Any],
        pool: BackendPool,
        *,
        admission: Admission,
        tiers: TierCatalog,
        metrics: GatewayMetrics,
    ) -> None:
        self._method = method
        self._path = f"/{method.service}/{method.name}"
        self._pool = pool
        self._admission = admission
        self._tiers = tiers
        self._metrics = metrics

    @property
    def service(self) -> str:
        """Full protobuf name."""
        return self._method.service

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to `server`, with bytes in and bytes out."""
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(
            self.relay
        )
        handlers = {self._method.name: handler}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(self._method.service, handlers),)
        )

    async def relay(self, payload: bytes, _context: object) -> AsyncIterator[bytes]:
        """Relays a backend's events for the request serialized in `payload`."""
        request, caller = current_request(), current_caller()
        caller.require(self._method.scope)
        tier = self._tier_of(caller)
        asked = await _inline_or_on_thread(payload, self._method.read, payload)
        order = self._method.take(asked, payload, lambda name: self._find_model(name, tier), tier)
        _check(order, tier)
        digest = await _inline_or_on_thread(
            payload, _digest, caller.account, self._path, order.payload
        )
        question = self._question(request, caller, tier, order, digest)
        async with Admitted(self._admission, question) as running:
            events = relay_events(
                self._pool,
                self._path,
                model=order.model,
                payload=self._settled(order, digest, request),
                request=request,
            )
            self._metrics.inflight_count += 1
            try:
                async with aclosing(events):
                    async for event in events:
                        chunk = self._method.artifact_in(event)
                        if chunk is not None:
                            running.delivered.size_bytes += chunk.size_bytes
                            if chunk.is_last:
                                await running.charge(chunk.index)
                        yield event
            finally:
                self._metrics.inflight_count -= 1

    def _settled(self, order: Order, digest: bytes, request: RequestContext) -> bytes:
        if not order.has_chances:
            return order.payload
        return self._method.settle(order.payload, _of_request(digest, request))

    def _question(
        self, request: RequestContext, caller: Caller, tier: Tier, order: Order, digest: bytes
    ) -> AdmissionRequest:
        return AdmissionRequest(
            request_id=request.request_id,
            # The caller chooses the id: with the digest, only the same request is the same charge.
            charge_id=f"{request.request_id}:{digest.hex()}",
            account=caller.account,
            tier=tier,
            service=self._method.label,
            model=order.model,
            artifact_millicredits=order.artifact_millicredits,
            artifact_count=order.artifact_count,
        )

    def _tier_of(self, caller: Caller) -> Tier:
        try:
            return self._tiers.get(caller.tier_name)
        except UnknownTierError as error:
            raise StateError(
                f"the account's tier {error.name!r} does not exist any more", reason="TIER_UNKNOWN"
            ) from error

    def _find_model(self, name: str, tier: Tier) -> ServedModel:
        model = self._pool.find_model(name, self._method.tasks)
        if tier.allows_model(model.name):
            return model
        message = f"the tier {tier.name!r} does not include the model {model.name!r}"
        if not tier.shadow:
            raise PermissionDeniedError(message, reason="MODEL_NOT_ALLOWED")
        _log.info("a limit that is not enforced was reached", extra={"why": message})
        return model


def _check(order: Order, tier: Tier) -> None:
    if not order.excesses:
        return
    if not tier.shadow:
        raise InvalidRequestError(order.excesses)
    fields = [violation.field for violation in order.excesses]
    extra = {"tier": tier.name, "fields": fields}
    _log.info("a limit that is not enforced was reached", extra=extra)


async def _inline_or_on_thread(
    payload: bytes, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """Calls a function whose time depends on the payload."""
    if len(payload) > _INLINE_BYTES:
        return await asyncio.to_thread(function, *args, **kwargs)
    return function(*args, **kwargs)


def _digest(account: str, path: str, payload: bytes) -> bytes:
    """Tells one request of an account from every other."""
    digest = hashlib.blake2b(f"{account}\0{path}\0".encode(), digest_size=_DIGEST_BYTES)
    digest.update(payload)
    return digest.digest()


def _of_request(digest: bytes, request: RequestContext) -> bytes:
    """What chance would decide, decided by the request and its id."""
    seed = hashlib.blake2b(request.request_id.encode(), digest_size=_DIGEST_BYTES)
    seed.update(digest)
    return seed.digest()
