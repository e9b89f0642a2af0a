"""The calls that a server is serving: counted, refused once it drains, cancelled when time is up.

Shared by the interceptor, which enters every call, and the server, which drains them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from services.runtime.errors import LimnerError, UnavailableError


class CallsInFlight:
    """The set of running calls of one server. On the event loop only."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._verdicts: WeakKeyDictionary[asyncio.Task[Any], LimnerError] = WeakKeyDictionary()
        self._closed = False
        self._cancelling = False
        self._grace_over = asyncio.Event()
        self._empty = asyncio.Event()

    @property
    def count(self) -> int:
        """How many calls are running."""
        return len(self._tasks)

    @property
    def cancelling(self) -> bool:
        """True from the end of the grace on: a CancelledError is the server's doing."""
        return self._cancelling

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Count the current task as a call; raises UnavailableError once closed."""
        if self._closed:
            raise UnavailableError(reason="SHUTTING_DOWN")
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)
            if self._closed and not self._tasks:
                self._empty.set()
                self._grace_over.set()

    def end(self, task: asyncio.Task[Any], error: LimnerError) -> None:
        """Cancel the call that `task` serves, if it is running; `error` is what it ends with."""
        if task in self._tasks:
            self._verdicts[task] = error
            task.cancel()

    def verdict(self) -> LimnerError | None:
        """Return what the call of the current task was ended with; None: it was not."""
        task = asyncio.current_task()
        return None if task is None else self._verdicts.get(task)

    def close(self) -> None:
        """Refuse new calls from now on."""
        self._closed = True
        if not self._tasks:
            self._empty.set()
            self._grace_over.set()

    def cut_grace(self) -> None:
        """End the grace of `finish` now."""
        self._grace_over.set()

    async def finish(self, grace_s: float, *, cancel_grace_s: float) -> int:
        """Wait for the calls within `grace_s`, then cancel the rest; returns their number.

        Cancelled calls get `cancel_grace_s` more to settle what they hold.
        """
        if await _is_set_within(self._grace_over, grace_s) and not self._tasks:
            return 0
        self._cancelling = True
        late = list(self._tasks)
        for task in late:
            task.cancel()
        await _is_set_within(self._empty, cancel_grace_s)
        return len(late)


async def _is_set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
