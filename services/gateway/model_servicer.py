"""ModelService at the door: what the serving backends have between them.

The server's own models come from the gateway's memory; the backends are asked for those that the
caller's account has trained.
"""

from __future__ import annotations

import grpc
import grpc.aio

from limner.v1 import model_pb2, model_pb2_grpc
from services.gateway.pool import BackendPool
from services.runtime.context import current_request


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Lists what the serving backends have between them."""

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool

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
        """All models, sorted by name; those that the caller has trained last."""
        models = [model.listing for model in self._pool.list_models()]
        models += await self._pool.list_trained(current_request())
        return model_pb2.ListModelsResponse(models=models)
