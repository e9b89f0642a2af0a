"""Backends that die or freeze: processes of their own, killed and stopped for real."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2

from limner.v1 import generation_pb2 as pb
from services.gateway.backend import LinkOptions
from tests.gateway.fake_backend import backend
from tests.gateway.harness import failure, reason, running_gateway, serving_count, until


@dataclass
class BackendProcess:
    process: asyncio.subprocess.Process
    address: str


@asynccontextmanager
async def backend_process():
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.gateway.fake_backend",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ".:proto/gen"},
    )
    try:
        async with asyncio.timeout(60):
            port = int(await process.stdout.readline())
        yield BackendProcess(process, f"127.0.0.1:{port}")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_backend_killed_under_a_stream_is_unavailable_at_once(tmp_path):
    async with backend_process() as lost, running_gateway(tmp_path, lost.address) as door:
        call = door.generate("hang")
        await anext(aiter(call))
        lost.process.send_signal(signal.SIGKILL)
        error = await failure(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason(error) == "BACKEND_LOST"
        await until(lambda: door.admission.closings == [["refund"]])
        await until(lambda: serving_count(door.gateway) == 0)
        assert reason(await failure(door.generate())) == "NO_BACKEND"


async def test_a_frozen_backend_is_noticed(tmp_path):
    # Silence of 10 s, the shortest that servers let pass between pings, and 1 s for the answer.
    options = LinkOptions(keepalive_time_s=10, keepalive_timeout_s=1)
    async with (
        backend_process() as lost,
        running_gateway(tmp_path, lost.address, options=options) as door,
    ):
        call = door.generate("hang")
        await anext(aiter(call))
        lost.process.send_signal(signal.SIGSTOP)
        error = await failure(call, timeout_s=90)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason(error) == "BACKEND_LOST"
        await until(lambda: serving_count(door.gateway) == 0)
        lost.process.send_signal(signal.SIGCONT)
        await until(lambda: serving_count(door.gateway) == 1)
        assert [event async for event in door.generate()]


async def test_a_backend_gone_before_the_first_event_is_replaced(tmp_path):
    async with (
        backend_process() as lost,
        backend() as other,
        running_gateway(tmp_path, lost.address, other) as door,
    ):
        calls = [door.generate("hang silently") for _ in range(2)]
        await until(lambda: other.running_count == 1)
        await until(lambda: door.metric("gateway_inflight") == 2)
        await asyncio.sleep(0.2)  # until the request has arrived at the process
        lost.process.send_signal(signal.SIGKILL)
        await until(lambda: other.running_count == 2)
        for call in calls:
            call.cancel()
        await until(lambda: door.admission.closings == [["refund"]] * 2)


async def test_a_backend_gone_unnoticed_costs_no_request(tmp_path):
    """Requests sent at the very moment of the loss: each is answered by the other backend."""
    async with (
        backend_process() as lost,
        backend() as other,
        running_gateway(tmp_path, lost.address, other) as door,
    ):
        lost.process.send_signal(signal.SIGKILL)
        async with asyncio.TaskGroup() as group:
            drawn = [group.create_task(_artifact_count(door)) for _ in range(40)]
        assert [task.result() for task in drawn] == [1] * 40
        assert len(other.calls) == 40


async def _artifact_count(door):
    return sum([event.artifact.last async for event in door.generate()])


async def test_a_transport_that_breaks_with_an_odd_status_is_a_lost_backend(tmp_path):
    """A server that cancels a stream by itself, as a forced stop does, leaves no details."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Cancelling(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with running_gateway(tmp_path, f"127.0.0.1:{port}") as door:
        error = await failure(door.generate())
    await server.stop(None)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(error) == "BACKEND_LOST"


class _Cancelling(grpc.GenericRpcHandler):
    """Serves the model `dots`; a generation is accepted, then ends as CANCELLED."""

    def service(self, details):
        if details.method.endswith("/Watch"):
            return grpc.unary_stream_rpc_method_handler(self._watch)
        if details.method.endswith("/ListModels"):
            return grpc.unary_unary_rpc_method_handler(self._list_models)
        return grpc.unary_stream_rpc_method_handler(self._generate)

    async def _watch(self, _request, _context):
        serving = health_pb2.HealthCheckResponse.SERVING
        yield health_pb2.HealthCheckResponse(status=serving).SerializeToString()
        await asyncio.Event().wait()

    async def _list_models(self, _request, _context):
        return b"\x0a\x06\x0a\x04dots"

    async def _generate(self, _request, context):
        yield pb.GenerateImageResponse(accepted=pb.Accepted()).SerializeToString()
        await context.abort(grpc.StatusCode.CANCELLED, "stopped")
