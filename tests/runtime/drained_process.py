"""A server process for the drain tests: `python -m tests.runtime.drained_process GRACE_S [fail]`.

Prints its port, and streams `step_count` progress events, 50 ms apart. With `fail` the step of its
device worker raises as soon as a call arrives.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from limner.v1 import generation_pb2, generation_pb2_grpc
from services.runtime.device_worker import DeviceWorker
from services.runtime.logs import configure_logging
from services.runtime.server import GrpcServer, Service, run_until_signal


class Streaming(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, worker: DeviceWorker) -> None:
        self.worker = worker

    async def GenerateImage(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for index in range(request.step_count):
            yield generation_pb2.GenerateImageResponse(
                progress=generation_pb2.Progress(completed_step_count=index)
            )
            self.worker.wake()
            await asyncio.sleep(0.05)


async def serve(grace_s: float, fails: bool) -> int:
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        if fails and steps > 1:
            raise RuntimeError("device lost")
        return False

    worker = DeviceWorker("device")
    servicer = Streaming(worker)
    server = GrpcServer(
        "127.0.0.1:0",
        [
            Service(
                name="limner.v1.GenerationService",
                register=lambda server: generation_pb2_grpc.add_GenerationServiceServicer_to_server(
                    servicer, server
                ),
            )
        ],
        grace_s=grace_s,
    )
    worker.start(step)
    port = await server.start()
    server.set_serving(True)
    print(port, flush=True)
    exit_code = await run_until_signal(server, failed=worker.failed)
    await worker.stop()
    return exit_code


if __name__ == "__main__":
    configure_logging("INFO")
    sys.exit(asyncio.run(serve(float(sys.argv[1]), "fail" in sys.argv)))
