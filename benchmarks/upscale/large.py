"""Camera photographs through a server of its own: the time, and the memory that they take.

Used by `python -m benchmarks.upscale --large`. Memory is the peak of the server's process, as the
kernel counts it, beside that after a picture of one tile, and beside the bound that
`models/upscalers/README.md` states. Linux only.
"""

from __future__ import annotations

import io
import math
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
from services.upscale.weights.descriptor import Descriptor

SIDES = ((3000, 2000), (6000, 4000))
"""24 megapixels out, and 24 megapixels in; each by 2."""
SCALE = 2.0
_MIB = 2**20


def measure_large(
    descriptor: Descriptor, model: str, folder: Path, cache_dir: Path
) -> list[dict[str, float]]:
    """Upscale a photograph of each of `SIDES` into a PNG. Raises LimnerError."""
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
            with Client(f"127.0.0.1:{port}") as client:
                tiling = descriptor.tiles()
                side = tiling.max_side - 2 * tiling.border
                client.upscale(_jpeg(side, side), scale=SCALE, output_format="png")
                one_tile = _peak_mib(process.pid)
                return [
                    _measured(client, process.pid, sides, one_tile, tiling.max_side)
                    for sides in SIDES
                ]
        finally:
            process.terminate()


def _measured(
    client: Client, pid: int, sides: tuple[int, int], one_tile: float, tile_side: int
) -> dict[str, float]:
    data = _jpeg(*sides)
    started_at = time.perf_counter()
    image = client.upscale(data, scale=SCALE, output_format="png").image
    seconds = time.perf_counter() - started_at
    bands = 4 * math.ceil(tile_side * SCALE) * image.width * 3
    growth = 7 * sides[0] * sides[1] + 3 * len(data) + bands + 1.125 * len(image.data)
    return {
        "megapixels_in": sides[0] * sides[1] / 1e6,
        "megapixels_out": image.width * image.height / 1e6,
        "seconds": seconds,
        "one_tile_mib": one_tile,
        "peak_mib": _peak_mib(pid),
        "bound_mib": one_tile + growth / _MIB,
        "file_mib": len(image.data) / _MIB,
    }


def _jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(large_photo(width, height)).save(buffer, "JPEG", quality=90)
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
    """`VmHWM`: the most physical memory that the process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
