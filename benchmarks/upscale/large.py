"""A camera's photograph through a server of its own: the time, and the memory that it takes.

Used by `python -m benchmarks.upscale --large`. Memory is the peak of the server's process, as the
kernel counts it, beside that of the same process before the request.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from benchmarks.upscale.workload import large_photo
from services.client import Client
from services.local.ports import free_port

SIDES = (6000, 4000)
SCALE = 2.0


def measure_large(model: str, folder: Path, cache_dir: Path) -> dict[str, float]:
    """Upscale a photograph of 24 megapixels by 2 into a PNG. Raises LimnerError."""
    port = free_port()
    environment = {
        **os.environ,
        "LIMNER_UPSCALE_ADDRESS": f"127.0.0.1:{port}",
        "LIMNER_UPSCALE_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
        "LIMNER_UPSCALE_FOLDERS": str(folder),
        "LIMNER_UPSCALE_MODELS": model,
        "LIMNER_UPSCALE_CACHE_DIR": str(cache_dir),
        "LIMNER_UPSCALE_LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "services.upscale"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            _wait_until_ready(port)
            before = _peak_mib(process.pid)
            started_at = time.perf_counter()
            with Client(f"127.0.0.1:{port}") as client:
                result = client.upscale(_jpeg(), scale=SCALE, output_format="png")
            seconds = time.perf_counter() - started_at
            after = _peak_mib(process.pid)
        finally:
            process.terminate()
    megapixels = result.image.width * result.image.height / 1e6
    return {
        "megapixels": megapixels,
        "seconds": seconds,
        "seconds_per_megapixel": seconds / megapixels,
        "peak_mib_before": before,
        "peak_mib": after,
        "file_mib": len(result.image.data) / 2**20,
    }


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(large_photo(*SIDES)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _wait_until_ready(port: int) -> None:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service="limner.v1.UpscaleService")
        # The published type stubs leave the method out.
        watch = health_pb2_grpc.HealthStub(channel).Watch  # type: ignore[attr-defined]
        for answer in watch(request, wait_for_ready=True):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return


def _peak_mib(pid: int) -> float:
    """`VmHWM`: the most physical memory that the process ever had. Linux only."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
