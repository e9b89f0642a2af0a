"""A backend that remembers which pictures it sent to the end, in the process of the script."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from limner.v1 import generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc
from services.runtime.context import current_request
from services.runtime.server import GrpcServer, Service

MODEL = "dots"
_CHUNK_BYTES = 8 * 1024
_CHUNK_COUNT = 2


@dataclass(kw_only=True)
class DrawingBackend(
    generation_pb2_grpc.GenerationServiceServicer, model_pb2_grpc.ModelServiceServicer
):
    """Draws `sample_count` pictures of zeros, each after a moment."""

    drawn: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Account and request id, and how many pictures were sent for them in all attempts."""
    running: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    """Most requests at once of each account."""

    async def start(self) -> tuple[GrpcServer, int]:
        """Serves at a free port."""
        server = GrpcServer(
            "127.0.0.1:0",
            [
                Service(
                    name="limner.v1.GenerationService",
                    register=lambda server: (
                        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, server)
                    ),
                ),
                Service(
                    name="limner.v1.ModelService",
                    register=lambda server: model_pb2_grpc.add_ModelServiceServicer_to_server(
                        self, server
                    ),
                ),
            ],
            grace_s=1,
        )
        port = await server.start()
        server.set_serving(True)
        return server, port

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: object
    ) -> model_pb2.ListModelsResponse:
        """One model."""
        return model_pb2.ListModelsResponse(models=[model_pb2.Model(name=MODEL, revision="1")])

    async def GenerateImage(
        self, request: generation_pb2.GenerateImageRequest, context: object
    ) -> AsyncIterator[generation_pb2.GenerateImageResponse]:
        """See the class."""
        caller = current_request()
        self.running[caller.account] += 1
        self.most[caller.account] = max(self.most[caller.account], self.running[caller.account])
        try:
            accepted = generation_pb2.Accepted(request_id=caller.request_id, model=MODEL)
            yield generation_pb2.GenerateImageResponse(accepted=accepted)
            for index in range(request.sample_count):
                await asyncio.sleep(random.uniform(0, 0.05))
                for number in range(_CHUNK_COUNT):
                    event = generation_pb2.GenerateImageResponse()
                    event.artifact.index = index
                    event.artifact.data = bytes(_CHUNK_BYTES)
                    event.artifact.last = number == _CHUNK_COUNT - 1
                    self.drawn[caller.account, caller.request_id] += event.artifact.last
                    yield event
        finally:
            self.running[caller.account] -= 1
