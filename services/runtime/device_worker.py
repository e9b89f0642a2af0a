"""One thread that owns a device: every model call of a process runs on it, in order.

The batcher gives it a `step`, which it repeats for as long as there is something to do; anything
else that touches the device (loading, warming up, encoding a prompt) is submitted as a call and
runs between two steps. It knows nothing about models, and restarts nothing: a step that fails
leaves the device in an unknown state, which is for the process to end and its supervisor to mend.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar

from services.runtime.errors import UnavailableError

P = ParamSpec("P")
R = TypeVar("R")

_Call: TypeAlias = tuple["concurrent.futures.Future[Any]", Callable[[], Any]]

_LOGGER = logging.getLogger(__name__)


class DeviceWorker:
    """A thread that runs submitted calls first, then one step, and sleeps when there is neither.

    Started, called and stopped on an event loop; `wake` is for any thread. Nothing polls: an idle
    worker costs no CPU.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._calls: deque[_Call] = deque()
        self._work = threading.Event()
        self._stopping = threading.Event()
        self._closed_by: UnavailableError | None = None
        self._thread: threading.Thread | None = None
        self._failed: asyncio.Future[BaseException] | None = None

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Gets the exception of a failed step as its result; pending while all is well.

        Give it to `run_until_signal`. There is one from `start` on.
        """
        if self._failed is None:
            raise RuntimeError(f"device worker {self._name} has not been started")
        return self._failed

    def start(self, step: Callable[[], bool]) -> None:
        """Start the thread. `step` returns False when it has nothing to do until `wake`."""
        if self._thread is not None:
            raise RuntimeError(f"device worker {self._name} was started before")
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        # A daemon, so that a process that dies of another error is not kept alive by its device.
        self._thread = threading.Thread(
            target=self._run, args=(step, loop, self._failed), name=self._name, daemon=True
        )
        self._thread.start()

    def call(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[R]:
        """Run `function` on the device thread; await the result, or what it raised, on this loop.

        Calls run in the order of submission. A future that is cancelled before its turn skips its
        call. Raises UnavailableError when the worker has stopped or failed.
        """
        future: concurrent.futures.Future[R] = concurrent.futures.Future()
        with self._lock:
            if self._closed_by is not None:
                raise self._closed_by
            self._calls.append((future, functools.partial(function, *args, **kwargs)))
        self._work.set()
        return asyncio.wrap_future(future)

    def wake(self) -> None:
        """Have `step` run (again). Any thread; a wake while a step runs is not lost."""
        self._work.set()

    async def stop(self) -> None:
        """End the thread after the step or call that runs now; what waits is SHUTTING_DOWN."""
        self._stopping.set()
        self._close(UnavailableError(reason="SHUTTING_DOWN"))
        self._work.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _run(
        self,
        step: Callable[[], bool],
        loop: asyncio.AbstractEventLoop,
        failed: asyncio.Future[BaseException],
    ) -> None:
        try:
            while not self._stopping.is_set():
                # Cleared before looking for work: whoever brings some from here on is seen by wait.
                self._work.clear()
                self._run_calls()
                if not self._stopping.is_set() and not step():
                    self._work.wait()
        except BaseException as error:  # the thread's end: whatever it is goes to `failed`
            _LOGGER.critical("a step of device worker %s failed", self._name, exc_info=error)
            self._close(UnavailableError("The device failed.", reason="BACKEND_LOST"))
            # The loop may be closed, then nobody is left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_set_result, failed, error)

    def _run_calls(self) -> None:
        while not self._stopping.is_set() and (call := self._next_call()) is not None:
            future, function = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:  # the caller's, on another thread: it goes there whole
                future.set_exception(error)
            else:
                future.set_result(result)

    def _next_call(self) -> _Call | None:
        with self._lock:
            return self._calls.popleft() if self._calls else None

    def _close(self, reason: UnavailableError) -> None:
        """Take no more calls, and fail those that wait."""
        with self._lock:
            self._closed_by = self._closed_by or reason
            waiting = list(self._calls)
            self._calls.clear()
        for future, _ in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(reason)


def _set_result(future: asyncio.Future[BaseException], error: BaseException) -> None:
    if not future.done():
        future.set_result(error)
