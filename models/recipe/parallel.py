"""Data-parallel workers: two CPU processes, or one process that owns a GPU.

Called by `loop` and `stages`. Gradients are averaged in one flat all-reduce, which on a CPU is
cheaper than DistributedDataParallel's overlapping buckets. Does not know what is trained.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

# Training may be suspended (SIGSTOP) for as long as this without the workers giving up.
GPU_BATCH_FACTOR = 16
SUSPENSION_LIMIT = timedelta(hours=6)


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One training process: its place among the others and what it computes with."""

    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def batch_factor(self) -> int:
        """How many times the batch of a CPU process this worker takes at once."""
        return GPU_BATCH_FACTOR if self.device.type == "cuda" else 1

    @property
    def leads(self) -> bool:
        """True for the one worker that logs and saves."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """A context that computes in `dtype`; for float32 one that changes nothing."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its mean over the workers."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()

    def share(self, values: list[float]) -> list[float]:
        """The leading worker's numbers, on every worker."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, src=0)
        return [float(value) for value in tensor]

    def add_up(self, tensor: Tensor) -> None:
        """Replace a CPU tensor by its sum over the workers."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def own(self, stack_K: Tensor) -> Tensor:
        """This worker's items of a stack: every `world_size`-th."""
        return stack_K[self.rank :: self.world_size]

    def exchange(self, stack_K: Tensor) -> None:
        """Replace every item of a stack by the one of the worker that owns it."""
        for rank in range(self.world_size if self.world_size > 1 else 0):
            items = stack_K[rank :: self.world_size]
            if len(items):
                sent = items.contiguous()
                dist.broadcast(sent, src=rank)
                items.copy_(sent)

    def broadcast_modules(self, modules: Iterable[nn.Module]) -> None:
        """Start every worker from the leading worker's weights."""
        if self.world_size == 1:
            return
        for module in modules:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)


def pick_device() -> torch.device:
    """A GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies in it, else float32.

    A CPU without such instructions emulates them: a 2048² product takes four times as long.
    """
    native = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    if device.type == "cuda" or any(supported() for supported in native):
        return torch.bfloat16
    return torch.float32


def launch(entry: Callable[[Worker], None], device: torch.device, process_count: int) -> None:
    """Run `entry` once per worker process and wait; the calling process is a worker if alone."""
    if process_count == 1:
        entry(Worker(rank=0, world_size=1, device=device, dtype=pick_dtype(device)))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = start_processes(  # type: ignore[no-untyped-call]
        _worker_main,
        args=(entry, device, process_count, port),
        nprocs=process_count,
        start_method="spawn",
        join=False,
    )
    stopping: list[int] = []

    def stop(number: int, _frame: object) -> None:
        """Have the workers save and leave: without this process they would go on alone."""
        stopping.append(number)
        for process in workers.processes:
            process.terminate()

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        while not workers.join():
            pass
    except ProcessExitedException as error:
        if stopping:
            raise SystemExit(error.exit_code) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _worker_main(
    rank: int,
    entry: Callable[[Worker], None],
    device: torch.device,
    process_count: int,
    port: int,
) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // process_count))
    dist.init_process_group("gloo", rank=rank, world_size=process_count, timeout=SUSPENSION_LIMIT)
    try:
        dtype = pick_dtype(device)
        entry(Worker(rank=rank, world_size=process_count, device=device, dtype=dtype))
    finally:
        dist.destroy_process_group()
