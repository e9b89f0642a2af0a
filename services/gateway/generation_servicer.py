"""GenerationService at the door: resolve the model, admit, relay.

Registered without serializers: requests and events pass as the bytes they are. A request is parsed
to learn what it asks for; of the events only artifact chunks are looked at, to count what was
delivered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from limner.v1 import generation_pb2
from services.gateway.admission import Admission, AdmissionRequest, Delivery, admitted
from services.gateway.authentication import current_caller
from services.gateway.backend import GENERATION_SERVICE
from services.gateway.metrics import GatewayMetrics
from services.gateway.pool import BackendPool
from services.gateway.relay import relay_events
from services.runtime.context import current_request
from services.runtime.errors import FieldViolation, InvalidRequestError

# First byte of a serialized event that holds an artifact chunk: its field number and wire type.
_ARTIFACT_TAG = generation_pb2.GenerateImageResponse.ARTIFACT_FIELD_NUMBER << 3 | 2


class GenerationServicer:
    """Serves GenerateImage from the backends of `pool`."""

    def __init__(self, pool: BackendPool, *, admission: Admission, metrics: GatewayMetrics) -> None:
        self._pool = pool
        self._admission = admission
        self._inflight = metrics.inflight

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to `server`, with bytes in and bytes out."""
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(
            self.generate_image
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(GENERATION_SERVICE, {"GenerateImage": handler}),)
        )

    async def generate_image(self, payload: bytes, _context: object) -> AsyncIterator[bytes]:
        """Relays a backend's events for the GenerateImageRequest serialized in `payload`."""
        request, caller = current_request(), current_caller()
        asked = _parse(payload)
        model = self._pool.resolve_model(asked.model)
        if asked.model != model:
            # Joined messages merge and the last value of a field wins: this sets the model.
            payload += generation_pb2.GenerateImageRequest(model=model).SerializeToString()
        question = AdmissionRequest(
            request_id=request.request_id,
            account=caller.account,
            key_id=caller.key_id,
            service="generation",
            model=model,
        )
        async with admitted(self._admission, question) as delivered:
            with self._inflight.track_inprogress():
                async with aclosing(relay_events(self._pool, model, payload, request)) as events:
                    async for event in events:
                        yield event
                        _count(event, delivered)


def _parse(payload: bytes) -> generation_pb2.GenerateImageRequest:
    try:
        return generation_pb2.GenerateImageRequest.FromString(payload)
    except DecodeError:
        violation = FieldViolation(
            field="", reason="MALFORMED", description="is not a GenerateImageRequest"
        )
        raise InvalidRequestError([violation]) from None


def _count(event: bytes, delivered: Delivery) -> None:
    if not event or event[0] != _ARTIFACT_TAG:
        return
    chunk = generation_pb2.GenerateImageResponse.FromString(event).artifact
    delivered.artifact_count += chunk.last
    delivered.size_bytes += len(chunk.data)
