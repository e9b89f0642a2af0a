"""A real server on port 0 whose handlers do what a test tells them to, and a real channel to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from limner.v1 import generation_pb2, generation_pb2_grpc
from services.runtime.context import RequestContext, current_request
from services.runtime.server import GrpcServer, Service

GENERATION = "limner.v1.GenerationService"
KINDS = "limner.test.v1.KindsService"

Request = generation_pb2.GenerateImageRequest
Response = generation_pb2.GenerateImageResponse
Script = Callable[[Any], AsyncGenerator[Any, None]]


async def one_event(request: Any) -> AsyncGenerator[Any, None]:
    yield Response(accepted=generation_pb2.Accepted(request_id=current_request().request_id))


class ScriptedGeneration(generation_pb2_grpc.GenerationServiceServicer):
    """Streams what `script` yields, and remembers the contexts that it was called in."""

    def __init__(self) -> None:
        self.script: Script = one_event
        self.requests: list[RequestContext] = []
        self.entered = asyncio.Event()
        self.left = asyncio.Event()

    async def GenerateImage(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(current_request())
        self.entered.set()
        try:
            async for response in self.script(request):
                yield response
        finally:
            # As a settle would: awaiting must work while a call is being cancelled.
            await asyncio.sleep(0)
            self.left.set()


def kinds_service(unary: Callable[[bytes], Awaitable[bytes]]) -> Service:
    """All four kinds of methods over plain bytes, each of which answers through `unary`."""

    async def unary_unary(request: bytes, context: Any) -> bytes:
        return await unary(request)

    async def unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield await unary(request)
        yield await unary(request)

    async def stream_unary(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return await unary(b"+".join([request async for request in requests]))

    async def stream_stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await unary(request)

    handlers = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary_unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(unary_stream),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(stream_unary),
        "StreamStream": grpc.stream_stream_rpc_method_handler(stream_stream),
    }
    generic = grpc.method_handlers_generic_handler(KINDS, handlers)
    return Service(name=KINDS, register=lambda server: server.add_generic_rpc_handlers((generic,)))


@dataclass(kw_only=True)
class Running:
    """A started server, what it serves, and a channel to it."""

    server: GrpcServer
    generation: ScriptedGeneration
    registry: CollectorRegistry
    port: int
    channel: grpc.aio.Channel

    @property
    def stub(self) -> Any:
        return generation_pb2_grpc.GenerationServiceStub(self.channel)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start servers by `await start(grace_s=…, identify=…, extra=[Service, …])`."""
    running: list[Running] = []

    async def start_one(
        *, grace_s: float = 5, extra: list[Service] | None = None, **options: Any
    ) -> Running:
        generation = ScriptedGeneration()
        registry = CollectorRegistry()
        service = Service(
            name=GENERATION,
            register=lambda server: generation_pb2_grpc.add_GenerationServiceServicer_to_server(
                generation, server
            ),
        )
        server = GrpcServer(
            "127.0.0.1:0",
            [service, *(extra or [])],
            grace_s=grace_s,
            registry=registry,
            **options,
        )
        port = await server.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        running.append(
            Running(
                server=server,
                generation=generation,
                registry=registry,
                port=port,
                channel=channel,
            )
        )
        return running[-1]

    yield start_one
    for one in running:
        await one.channel.close()
        await one.server.drain(grace_s=0)


@pytest.fixture
async def running(start: Start) -> Running:
    return await start()
