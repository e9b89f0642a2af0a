"""ModelService and AccountService at the door: what exists, and who is asking.

Both answer from the gateway's own memory; no call goes to a backend or the database.
"""

from __future__ import annotations

import grpc
import grpc.aio

from limner.v1 import account_pb2, account_pb2_grpc, model_pb2, model_pb2_grpc
from services.gateway.authentication import current_caller
from services.gateway.pool import BackendPool


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
        """All models, sorted by name."""
        models = [model.listing for model in self._pool.list_models()]
        return model_pb2.ListModelsResponse(models=models)


class AccountServicer(account_pb2_grpc.AccountServiceServicer):
    """Tells callers which account and key they use."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to `server`."""
        account_pb2_grpc.add_AccountServiceServicer_to_server(self, server)

    async def GetAccount(
        self,
        request: account_pb2.GetAccountRequest,
        context: grpc.aio.ServicerContext[
            account_pb2.GetAccountRequest, account_pb2.GetAccountResponse
        ],
    ) -> account_pb2.GetAccountResponse:
        """The caller's account and key."""
        caller = current_caller()
        response = account_pb2.GetAccountResponse(account=caller.account, key_id=caller.key_id)
        response.key_create_time.FromDatetime(caller.key_created)
        return response
