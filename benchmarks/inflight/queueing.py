"""One worker thread behind a queue: what stands in front of a pipeline in the usual service.

The peers differ in what they do with the jobs that wait; this module holds what they share.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import queue
import resource
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.inflight.workload import Job


@dataclass(kw_only=True, slots=True, eq=False)
class Ticket:
    """A job in the line."""

    job: Job
    loop: asyncio.AbstractEventLoop
    first_step: Callable[[], None]
    done: asyncio.Future[bytes]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def report_first_step(self) -> None:
        """Tell the client, from the worker thread."""
        self.loop.call_soon_threadsafe(self.first_step)

    def finish(self, picture: bytes) -> None:
        """Hand the picture over, from the worker thread."""
        self.loop.call_soon_threadsafe(self._resolve, picture)

    def _resolve(self, picture: bytes) -> None:
        if not self.done.done():
            self.done.set_result(picture)


class Queued(ABC):
    """A system with one worker thread; subclasses load a model and serve tickets."""

    def __init__(self, model: str, thread_count: int) -> None:
        self.model = model
        self.thread_count = thread_count
        self._line: queue.Queue[Ticket | None] = queue.Queue()

    async def start(self) -> None:
        """Load and warm up on the worker thread."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._worker = threading.Thread(target=self._run, args=(loop, ready), daemon=True)
        self._worker.start()
        await ready

    async def draw(self, job: Job, first_step: Callable[[], None]) -> bytes:
        """Wait in line for the picture."""
        loop = asyncio.get_running_loop()
        ticket = Ticket(job=job, loop=loop, first_step=first_step, done=loop.create_future())
        self._line.put(ticket)
        try:
            return await ticket.done
        except asyncio.CancelledError:
            ticket.cancelled.set()
            raise

    def memory_bytes(self) -> int:
        """Peak resident memory of this process."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    async def stop(self) -> None:
        """End the worker thread after the current ticket."""
        self._line.put(None)
        await asyncio.to_thread(self._worker.join)

    @abstractmethod
    def load(self) -> None:
        """Load the model and draw once; runs on the worker thread."""

    @abstractmethod
    def serve(self, first: Ticket) -> None:
        """Draw `first`, and others from the line if the system can batch."""

    def waiting(self, window_s: float) -> Ticket | None:
        """The next ticket if one arrives within `window_s`."""
        with contextlib.suppress(queue.Empty):
            ticket = self._line.get(timeout=window_s)
            if ticket is None:
                self._line.put(None)
            return ticket
        return None

    def put_back(self, tickets: list[Ticket]) -> None:
        """Return tickets that the current batch has no place for, in front of the line."""
        with self._line.mutex:
            self._line.queue.extendleft(reversed(tickets))
            self._line.not_empty.notify()

    def _run(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Future[None]) -> None:
        self.load()
        loop.call_soon_threadsafe(ready.set_result, None)
        while (ticket := self._line.get()) is not None:
            if not ticket.cancelled.is_set():
                self.serve(ticket)


def png(picture_HWC: npt.NDArray[np.uint8]) -> bytes:
    """Encode as the diffusion service does."""
    buffer = io.BytesIO()
    Image.fromarray(picture_HWC).save(buffer, "PNG")
    return buffer.getvalue()
