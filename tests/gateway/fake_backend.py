"""A backend that draws nothing: a real server with real health, scripted by the prompt.

Used in process by most tests, and as `python -m tests.gateway.fake_backend` (prints its port) where
a test kills or freezes the process.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from limner.v1 import generation_pb2 as pb
from limner.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc
from services.runtime.context import RequestContext, current_request
from services.runtime.errors import (
    FieldViolation,
    InvalidRequestError,
    QueueFullError,
    UnavailableError,
)
from services.runtime.server import GrpcServer, Service

CHUNK_BYTES = 256 * 1024


@dataclass(kw_only=True)
class Seen:
    """A call as the backend got it."""

    request: pb.GenerateImageRequest
    context: RequestContext
    metadata: tuple[tuple[str, Any], ...]
    outcome: str = "running"
    sent_count: int = 0


@dataclass(kw_only=True)
class FakeBackend(
    generation_pb2_grpc.GenerationServiceServicer, model_pb2_grpc.ModelServiceServicer
):
    """Draws artifacts of zeros. The prompt says what happens, see `_PROMPTS`."""

    models: Sequence[str] = ("dots",)
    revision: str = "r1"
    artifact_bytes: int = 1000
    draining: bool = False
    credentials: grpc.ServerCredentials | None = None
    trained: dict[str, Sequence[str]] = field(default_factory=dict)
    """Models by the account that trained them."""
    calls: list[Seen] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    server: GrpcServer | None = None
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def running_count(self) -> int:
        return sum(seen.outcome == "running" for seen in self.calls)

    async def start(self, port: int = 0) -> None:
        """Serves at once, at `port` or a free one."""
        self.server = GrpcServer(
            f"127.0.0.1:{port}",
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
            grace_s=0,
            credentials=self.credentials,
        )
        self.port = await self.server.start()
        self.server.set_serving(True)

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.drain()

    async def ListModels(self, request: object, context: object) -> model_pb2.ListModelsResponse:
        models = [model_pb2.Model(name=name, revision=self.revision) for name in self.models]
        models += [
            model_pb2.Model(name=name, base_model=name.partition("@")[0])
            for name in self.trained.get(current_request().account, ())
        ]
        return model_pb2.ListModelsResponse(models=models)

    async def GenerateImage(
        self, request: pb.GenerateImageRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateImageResponse]:
        seen = Seen(
            request=request,
            context=current_request(),
            metadata=tuple(context.invocation_metadata()),
        )
        self.calls.append(seen)
        try:
            if self.draining:
                raise UnavailableError(reason="SHUTTING_DOWN")
            async for event in _PROMPTS[request.prompt](self, request):
                yield event
                seen.sent_count += 1
            seen.outcome = "done"
        except asyncio.CancelledError:
            seen.outcome = "cancelled"
            raise
        finally:
            if seen.outcome == "running":
                seen.outcome = "failed"


def accepted(request: pb.GenerateImageRequest, model: str) -> pb.GenerateImageResponse:
    return pb.GenerateImageResponse(
        accepted=pb.Accepted(
            request_id=current_request().request_id, model=model, step_count=request.step_count
        )
    )


async def _picture(
    backend: FakeBackend, request: pb.GenerateImageRequest
) -> AsyncIterator[pb.GenerateImageResponse]:
    yield accepted(request, request.model)
    for step in range(request.step_count):
        await asyncio.sleep(0)
        yield progress(step + 1, request.step_count)
    for chunk in chunks(backend.artifact_bytes):
        yield pb.GenerateImageResponse(artifact=chunk)


def progress(step: int, step_count: int) -> pb.GenerateImageResponse:
    return pb.GenerateImageResponse(
        progress=pb.Progress(completed_step_count=step, total_step_count=step_count)
    )


def chunks(size_bytes: int) -> list[Any]:
    """An artifact of zeros in pieces of 256 KiB."""
    pieces = []
    for start in range(0, size_bytes, CHUNK_BYTES):
        piece = pb.GenerateImageResponse().artifact
        piece.data = bytes(min(CHUNK_BYTES, size_bytes - start))
        piece.last = start + CHUNK_BYTES >= size_bytes
        if not start:
            piece.info.mime_type = "image/png"
            piece.info.size_bytes = size_bytes
        pieces.append(piece)
    return pieces


async def _hang(
    backend: FakeBackend, request: pb.GenerateImageRequest
) -> AsyncIterator[pb.GenerateImageResponse]:
    yield accepted(request, request.model)
    await asyncio.Event().wait()


async def _hang_silently(
    backend: FakeBackend, request: pb.GenerateImageRequest
) -> AsyncIterator[pb.GenerateImageResponse]:
    await asyncio.Event().wait()
    yield accepted(request, request.model)


async def _step_by_step(
    backend: FakeBackend, request: pb.GenerateImageRequest
) -> AsyncIterator[pb.GenerateImageResponse]:
    """A picture whose artifact waits for `backend.more`."""
    yield accepted(request, request.model)
    await backend.more.wait()
    for chunk in chunks(backend.artifact_bytes):
        yield pb.GenerateImageResponse(artifact=chunk)


async def _picture_then_hang(
    backend: FakeBackend, request: pb.GenerateImageRequest
) -> AsyncIterator[pb.GenerateImageResponse]:
    async for event in _picture(backend, request):
        yield event
    await asyncio.Event().wait()


async def _endless(
    backend: FakeBackend, request: pb.GenerateImageRequest
) -> AsyncIterator[pb.GenerateImageResponse]:
    """Chunks for ever: whoever does not read stops it by back-pressure alone."""
    yield accepted(request, request.model)
    chunk = chunks(2 * CHUNK_BYTES)[0]
    while True:
        yield pb.GenerateImageResponse(artifact=chunk)


async def _refuse(
    backend: FakeBackend, request: pb.GenerateImageRequest
) -> AsyncIterator[pb.GenerateImageResponse]:
    raise InvalidRequestError(
        [
            FieldViolation(field="width", reason="OUT_OF_RANGE", description="must be 64"),
            FieldViolation(field="step_count", reason="OUT_OF_RANGE", description="must be 1"),
        ]
    )
    yield


async def _queue_full(
    backend: FakeBackend, request: pb.GenerateImageRequest
) -> AsyncIterator[pb.GenerateImageResponse]:
    raise QueueFullError(1.5)
    yield


async def _fail_after_picture(
    backend: FakeBackend, request: pb.GenerateImageRequest
) -> AsyncIterator[pb.GenerateImageResponse]:
    async for event in _picture(backend, request):
        yield event
    raise ValueError("a defect of the backend")


_PROMPTS = {
    "picture": _picture,
    "hang": _hang,
    "hang silently": _hang_silently,
    "step by step": _step_by_step,
    "picture, then hang": _picture_then_hang,
    "endless": _endless,
    "refuse": _refuse,
    "queue full": _queue_full,
    "fail after picture": _fail_after_picture,
}


@asynccontextmanager
async def backend(**options: Any) -> AsyncIterator[FakeBackend]:
    """A fake backend that serves for the length of the block."""
    fake = FakeBackend(**options)
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


async def _main() -> None:
    fake = FakeBackend()
    await fake.start()
    print(fake.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
