"""What the gateway costs: the same calls to a backend directly and through the door.

`python -m benchmarks.gateway_hop`. Gateway and backend are processes of their own; the backend
draws nothing and answers at once, so that all that is measured is the way. Beside them is a bare
proxy, which relays bytes with the same library and does nothing else: the least that a hop costs.
Calls take turns between the ways, one at a time, so that all see the same machine. Reported: time
to the end of the stream, and the processor time that the process in between spent per call.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2

from benchmarks.report import json_line, table
from limner.v1 import artifact_pb2, generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc
from services.gateway.audit import Actor
from services.gateway.backend import Relayed
from services.gateway.key_store import KeyStore
from services.gateway.schema import migrate
from services.gateway.tiers import UNLIMITED_TIER
from services.runtime.context import current_request
from services.runtime.server import GrpcServer, Service, run_until_signal
from services.storage.database import open_engine

_CHUNK_BYTES = 256 * 1024
_ARTIFACT_BYTES = 1_500_000
_MODEL = "blank"
_PEPPER = "not-a-secret-as-it-guards-nothing"
_SERVICE = "limner.v1.GenerationService"


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One of the ways to the backend."""

    stub: generation_pb2_grpc.GenerationServiceAsyncStub
    metadata: Sequence[tuple[str, str]] = ()
    process: psutil.Process | None = None
    """What is in between."""


class BlankBackend(
    generation_pb2_grpc.GenerationServiceServicer, model_pb2_grpc.ModelServiceServicer
):
    """Answers at once: `accepted`, and when a sample is asked for, an artifact of 1.5 MB."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds both services to `server`."""
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, server)

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: object
    ) -> model_pb2.ListModelsResponse:
        """One model."""
        return model_pb2.ListModelsResponse(models=[model_pb2.Model(name=_MODEL, revision="1")])

    async def GenerateImage(
        self, request: generation_pb2.GenerateImageRequest, context: object
    ) -> AsyncIterator[generation_pb2.GenerateImageResponse]:
        """See the class."""
        accepted = generation_pb2.Accepted(request_id=current_request().request_id, model=_MODEL)
        yield generation_pb2.GenerateImageResponse(accepted=accepted)
        for start in range(0, _ARTIFACT_BYTES if request.sample_count else 0, _CHUNK_BYTES):
            data = bytes(min(_CHUNK_BYTES, _ARTIFACT_BYTES - start))
            last = start + _CHUNK_BYTES >= _ARTIFACT_BYTES
            chunk = artifact_pb2.ArtifactChunk(data=data, last=last)
            yield generation_pb2.GenerateImageResponse(artifact=chunk)


async def serve_backend(address: str) -> int:
    """The backend's process."""
    backend = BlankBackend()
    server = GrpcServer(address, [Service(name=_SERVICE, register=backend.register)], grace_s=1)
    await server.start()
    server.set_serving(True)
    return await run_until_signal(server)


async def serve_proxy(address: str, backend: str) -> int:
    """The bare proxy's process."""
    async with grpc.aio.insecure_channel(backend) as channel:
        relayed: Relayed = channel.unary_stream(f"/{_SERVICE}/GenerateImage")

        async def relay(payload: bytes, context: object) -> AsyncIterator[bytes]:
            async for event in relayed(payload):
                yield event

        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(relay)
        handlers = {"GenerateImage": handler}
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        server.add_insecure_port(address)
        await server.start()
        await server.wait_for_termination()
    return 0


async def measure(call_count: int) -> None:
    """Starts the processes, measures, prints."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend, gateway, proxy = _free_addresses(3)
        key, database = await _make_key(folder)
        await stack.enter_async_context(
            _process(["-m", "benchmarks.gateway_hop", "--serve", backend])
        )
        variables = {"BACKENDS": backend, "ADDRESS": gateway, "DATABASE_URL": database}
        variables |= {"KEY_PEPPER": _PEPPER, "METRICS_ADDRESS": "127.0.0.1:0"}
        environment = {f"LIMNER_GATEWAY_{name}": value for name, value in variables.items()}
        process = await stack.enter_async_context(
            _process(["-m", "services.gateway"], **environment)
        )
        bare = await stack.enter_async_context(
            _process(["-m", "benchmarks.gateway_hop", "--serve", proxy, "--proxy-of", backend])
        )
        ways = {
            "direct": Way(stub=await _stub(stack, backend)),
            "gateway": Way(
                stub=await _stub(stack, gateway),
                metadata=(("authorization", f"Bearer {key}"),),
                process=psutil.Process(process.pid),
            ),
            "bare_proxy": Way(
                stub=await _stub_of_proxy(stack, proxy), process=psutil.Process(bare.pid)
            ),
        }
        results = {
            name: await _compare(ways, sample_count, call_count)
            for name, sample_count in (("minimal stream", 0), ("1.5 MB artifact", 1))
        }
    header = ("call", "way", "p50 ms", "added p50 ms", "added p99 ms", "CPU ms")
    rows = [
        (call, way, *(f"{value:.2f}" for value in figures.values()))
        for call, by_way in results.items()
        for way, figures in by_way.items()
    ]
    print(table(header, rows))
    print(json_line("gateway_hop", {"call_count": call_count, **results}))


async def _compare(
    ways: Mapping[str, Way], sample_count: int, call_count: int
) -> dict[str, dict[str, float]]:
    """For each way: p50, what it adds to the direct one's p50 and p99, processor time a call."""
    request = generation_pb2.GenerateImageRequest(model=_MODEL, sample_count=sample_count)
    for _ in range(call_count // 10):
        for way in ways.values():
            await _timed_ms(way, request)
    spent_ms: dict[str, list[float]] = {name: [] for name in ways}
    cpu_before_s = {name: _cpu_s(way.process) for name, way in ways.items()}
    for _ in range(call_count):
        for name, way in ways.items():
            spent_ms[name].append(await _timed_ms(way, request))
    p99 = round(0.99 * (call_count - 1))
    direct = sorted(spent_ms["direct"])
    return {
        name: {
            "p50_ms": statistics.median(spent_ms[name]),
            "added_p50_ms": statistics.median(spent_ms[name]) - statistics.median(direct),
            "added_p99_ms": sorted(spent_ms[name])[p99] - direct[p99],
            "cpu_ms": (_cpu_s(way.process) - cpu_before_s[name]) * 1000 / call_count,
        }
        for name, way in ways.items()
    }


async def _timed_ms(way: Way, request: generation_pb2.GenerateImageRequest) -> float:
    begin = time.perf_counter()
    async for _ in way.stub.GenerateImage(request, metadata=way.metadata):
        pass
    return (time.perf_counter() - begin) * 1000


def _cpu_s(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)


async def _make_key(folder: Path) -> tuple[str, str]:
    url = f"sqlite+aiosqlite:///{folder}/gateway.db"
    engine = open_engine(url)
    await migrate(engine)
    key, _ = await KeyStore(engine=engine).create_key(
        account="bench",
        name="bench",
        pepper=_PEPPER.encode(),
        actor=Actor(account="bench", key_id="", request_id="bench"),
        new_account_tier=UNLIMITED_TIER,
    )
    await engine.dispose()
    return key.text, url


async def _stub(
    stack: AsyncExitStack, address: str
) -> generation_pb2_grpc.GenerationServiceAsyncStub:
    """A stub for `address`, once it serves."""
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    updates = watch(health_pb2.HealthCheckRequest(service=_SERVICE), wait_for_ready=True)
    async with asyncio.timeout(60):
        async for update in updates:
            if update.status == health_pb2.HealthCheckResponse.SERVING:
                break
    updates.cancel()
    stub: generation_pb2_grpc.GenerationServiceAsyncStub
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    return stub


async def _stub_of_proxy(
    stack: AsyncExitStack, address: str
) -> generation_pb2_grpc.GenerationServiceAsyncStub:
    """A stub for a server without a health service, once it listens."""
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
    async with asyncio.timeout(60):
        await channel.channel_ready()
    stub: generation_pb2_grpc.GenerationServiceAsyncStub
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    return stub


@asynccontextmanager
async def _process(
    arguments: Sequence[str], **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,  # a line per call, read by nobody
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _free_addresses(count: int) -> list[str]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=1000, help="calls of each kind and way")
    parser.add_argument("--serve", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--proxy-of", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.proxy_of:
        sys.exit(asyncio.run(serve_proxy(arguments.serve, arguments.proxy_of)))
    if arguments.serve:
        sys.exit(asyncio.run(serve_backend(arguments.serve)))
    asyncio.run(measure(arguments.calls))


if __name__ == "__main__":
    main()
