"""What a request costs in memory: its source once, its result once, a few rows of tiles.

Measured as the kernel counts it, in a server's own process, whose network draws noise: no file can
be larger for its pixels.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from limner.v1 import artifact_pb2, upscale_pb2_grpc
from tests.upscale.doubles import SMALL_TILING, noise
from tests.upscale.service.harness import Request, png

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux, whose kernel counts pages"
)

ROOT = Path(__file__).parents[3]
SIDE, SCALE, CHANNELS = 800, 4, 3
SOURCE_PIXELS, OUTPUT_PIXELS = SIDE**2, (SIDE * SCALE) ** 2
BAND_BYTES = SMALL_TILING.max_side * SCALE * SIDE * SCALE * CHANNELS
FIXED_BYTES = 8 * 2**20


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, grpc.Channel]]:
    """Process id of a server, and a channel to it."""
    command = [sys.executable, "-m", "tests.upscale.service.noisy_server"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto' / 'gen'}"}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield process.pid, channel
        process.communicate()


def _bytes(pid: int, field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def _upscale(channel: grpc.Channel, image: bytes, output_format: int) -> int:
    """Size of the file in bytes; it is not kept."""
    request = Request(image=image, output_format=output_format)
    responses = upscale_pb2_grpc.UpscaleServiceStub(channel).UpscaleImage(request)
    return sum(len(response.artifact.data) for response in responses)


@pytest.mark.parametrize(
    ("output_format", "pixel_bytes", "file_share"),
    [
        # As it is compressed, with the reserve by which a growing file grows.
        (artifact_pb2.IMAGE_FORMAT_PNG, 0, 1.125),
        # One copy of the picture, 4 bytes a pixel, and the file.
        (artifact_pb2.IMAGE_FORMAT_JPEG, 4, 1.125),
        # The same, and what the encoder takes.
        (artifact_pb2.IMAGE_FORMAT_WEBP, 4 + 8, 0),
    ],
    ids=["png", "jpeg", "webp"],
)
def test_a_request_holds_one_copy_of_its_result(
    server: tuple[int, grpc.Channel], output_format: int, pixel_bytes: int, file_share: float
) -> None:
    pid, channel = server
    _upscale(channel, png(noise(100, 100)), output_format)  # threads and libraries are there now
    image = png(noise(SIDE, SIDE))
    before = _bytes(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from here on

    file_bytes = _upscale(channel, image, output_format)

    growth = _bytes(pid, "VmHWM") - before
    source = 7 * SOURCE_PIXELS + 3 * len(image)
    result = pixel_bytes * OUTPUT_PIXELS + file_share * file_bytes
    assert file_bytes > OUTPUT_PIXELS / 2, "noise does not shrink"
    assert growth < source + 4 * BAND_BYTES + result + FIXED_BYTES
