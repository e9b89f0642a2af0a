"""ModelService at the door: what the serving backends have between them.

It answers from the gateway's own memory; no call goes to a backend or the database.
"""

from __future__ import annotations

import grpc
import grpc.aio

from limner.v1 import model_pb2, model_pb2_grpc
from services.gateway.announcement import LimitAnnouncer
from services.gateway.pool import BackendPool


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Lists what the serving backends have between them."""

    def __init__(self, pool: BackendPool, *, announcer: LimitAnnouncer) -> None:
        self._pool = pool
        self._announcer = announcer

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to `server`."""
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, server)

    async def ListModels(
        self,
        request: model_pb2.ListModelsRequest,
        context: grpc.aio.ServicerContext[
            model_pb2.ListModelsRequest, model_pb2.ListModelsResponse
        ],
    ) -> model_pb2.ListModelsResponse:
        """All models, sorted by name."""
        await self._announcer.announce()
        models = [model.listing for model in self._pool.list_models()]
        return model_pb2.ListModelsResponse(models=models)
