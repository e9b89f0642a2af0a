"""A real gRPC server in this process whose answers a test writes down.

It implements the three services of the contract; a test sets what each does. Not a service: it
checks nothing and draws nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from limner.v1 import (
    account_pb2,
    account_pb2_grpc,
    artifact_pb2,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 2

Responses = Iterator[generation_pb2.GenerateImageResponse]
Generate = Callable[[generation_pb2.GenerateImageRequest, grpc.ServicerContext], Responses]


def fail(
    context: grpc.ServicerContext, code: grpc.StatusCode, message: str, *details: Message
) -> Any:
    """Abort the call with google.rpc details."""
    packed = []
    for detail in details:
        any_detail = any_pb2.Any()
        any_detail.Pack(detail)
        packed.append(any_detail)
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=message, details=packed)
    context.abort_with_status(rpc_status.to_status(status))


def error_info(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="limner", metadata=metadata)


def retry_info(milliseconds: int) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(milliseconds)
    return info


def accepted(
    request: generation_pb2.GenerateImageRequest, notices: Sequence[generation_pb2.Notice] = ()
) -> generation_pb2.GenerateImageResponse:
    return generation_pb2.GenerateImageResponse(
        accepted=generation_pb2.Accepted(
            request_id="request-1",
            model=request.model or "scripted",
            model_revision="r1",
            width=request.width or 128,
            height=request.height or 64,
            step_count=request.step_count or 4,
            guidance_scale=request.guidance_scale or 5.0,
            seed=request.seed or 7,
            sampler=request.sampler or generation_pb2.SAMPLER_DPMPP_2M,
            sample_count=request.sample_count or 1,
            output_format=request.output_format or artifact_pb2.IMAGE_FORMAT_PNG,
            notices=notices,
        )
    )


def progress(done: int, total: int) -> generation_pb2.GenerateImageResponse:
    return generation_pb2.GenerateImageResponse(
        progress=generation_pb2.Progress(completed_step_count=done, total_step_count=total)
    )


def queued(position: int) -> generation_pb2.GenerateImageResponse:
    return generation_pb2.GenerateImageResponse(queued=generation_pb2.Queued(position=position))


def preview(index: int, step: int) -> generation_pb2.GenerateImageResponse:
    return generation_pb2.GenerateImageResponse(
        preview=generation_pb2.Preview(index=index, step=step, image=PNG, mime_type="image/png")
    )


def chunk(
    index: int, data: bytes, *, first: bool, last: bool, size_bytes: int = len(PNG), seed: int = 7
) -> generation_pb2.GenerateImageResponse:
    info = None
    if first:
        info = artifact_pb2.ArtifactInfo(
            seed=seed, mime_type="image/png", width=128, height=64, size_bytes=size_bytes
        )
    return generation_pb2.GenerateImageResponse(
        artifact=artifact_pb2.ArtifactChunk(index=index, info=info, data=data, last=last)
    )


def image(index: int, seed: int = 7) -> Responses:
    """A picture in three chunks."""
    yield chunk(index, PNG[:100], first=True, last=False, seed=seed)
    yield chunk(index, PNG[100:400], first=False, last=False)
    yield chunk(index, PNG[400:], first=False, last=True)


def draw(request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext) -> Responses:
    """Every kind of event, then all pictures."""
    first = accepted(request)
    yield first
    yield queued(2)
    yield queued(0)
    total = first.accepted.step_count * first.accepted.sample_count
    for step in range(1, total + 1):
        yield progress(step, total)
    for index in range(first.accepted.sample_count):
        if request.preview_interval:
            yield preview(index, 2)
        yield from image(index, seed=first.accepted.seed + index)


class ScriptedServer(
    generation_pb2_grpc.GenerationServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    account_pb2_grpc.AccountServiceServicer,
):
    """The server; `generate` is what GenerateImage does."""

    def __init__(self) -> None:
        self.generate: Generate = draw
        self.models = model_pb2.ListModelsResponse()
        self.account = account_pb2.GetAccountResponse()
        self.unary_failures: list[Callable[[grpc.ServicerContext], Any]] = []
        self.requests: list[generation_pb2.GenerateImageRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.usage_counts: list[int] = []
        self.call_count = 0
        self.ended = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        account_pb2_grpc.add_AccountServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def GenerateImage(self, request: Any, context: Any) -> Responses:
        self._record(context)
        self.requests.append(request)
        context.add_callback(self.ended.set)
        yield from self.generate(request, context)

    def ListModels(self, request: Any, context: Any) -> model_pb2.ListModelsResponse:
        self._record(context)
        if self.unary_failures:
            self.unary_failures.pop(0)(context)
        return self.models

    def GetAccount(self, request: Any, context: Any) -> account_pb2.GetAccountResponse:
        self._record(context)
        return self.account

    def WatchUsage(self, request: Any, context: Any) -> Iterator[account_pb2.WatchUsageResponse]:
        """Tell of the next count in `usage_counts`, and be away before the one after it."""
        self._record(context)
        if not self.usage_counts:
            return
        usage = account_pb2.Usage(account="acme", request_count=self.usage_counts.pop(0))
        yield account_pb2.WatchUsageResponse(usage=usage)
        if self.usage_counts:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def stop(self) -> None:
        self._server.stop(grace=None).wait()

    def _record(self, context: grpc.ServicerContext) -> None:
        self.call_count += 1
        self.metadata.append(dict(context.invocation_metadata()))
