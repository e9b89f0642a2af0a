"""The way of events from the device thread to the one handler that streams them to a client.

The device thread puts and never waits; the handler iterates. Progress, previews and queue positions
are latest-wins by key, artifacts are never dropped, so that what waits is bounded by what a request
asked for, however slow its client is. Deliberately no back-pressure: one slow client must not
hold up a batch that it shares with others.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Hashable
from types import TracebackType
from typing import Generic, Self, TypeVar

from services.runtime.errors import LimnerError

E = TypeVar("E")


class EventChannel(Generic[E]):
    """A channel with any number of producing threads and one consumer on an event loop.

    Made on the consumer's loop. The handler reads it inside `with channel:`, so that however it
    ends (the client cancelled, a write failed) the producer sees `cancelled` and stops the work:

        with channel:
            async for event in channel:
                yield to_message(event)
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pending: OrderedDict[Hashable, E] = OrderedDict()
        self._ready = asyncio.Event()
        self._waking = False
        self._closed = False
        self._cancelled = False
        self._error: LimnerError | None = None

    @property
    def cancelled(self) -> bool:
        """True once the consumer has left: what is put from now on goes nowhere. Any thread."""
        return self._cancelled

    @property
    def closed(self) -> bool:
        """True once the producer has closed or the consumer has left. Any thread."""
        return self._closed or self._cancelled

    def put_latest(self, key: Hashable, event: E) -> None:
        """Queue `event` in place of one under the same key that still waits. Any thread."""
        self._put(("latest", key), event)

    def put(self, event: E) -> None:
        """Queue `event`, which is delivered after all that waits, and never dropped. Any thread."""
        self._put(object(), event)

    def close(self, error: LimnerError | None = None) -> None:
        """End the stream after what waits, by raising `error` if there is one. Any thread.

        The first close counts; further ones, and what is put afterwards, do nothing.
        """
        with self._lock:
            if self.closed:
                return
            self._closed = True
            self._error = error
            self._wake_consumer()

    def cancel(self) -> None:
        """Leave: drop what waits and turn further puts into no-ops. Any thread."""
        with self._lock:
            self._cancelled = True
            self._pending.clear()
            self._wake_consumer()

    def _put(self, key: Hashable, event: E) -> None:
        with self._lock:
            if self.closed:
                return
            # A newer event goes to the end: events stay in the order in which they happened.
            self._pending.pop(key, None)
            self._pending[key] = event
            self._wake_consumer()

    def _wake_consumer(self) -> None:
        """Wake the consumer once for all that is put before it looks. Holds the lock."""
        if self._waking:
            return
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:
            # The loop is closed: nobody is left to read.
            self._cancelled = True
            self._pending.clear()
        else:
            self._waking = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        """Return the next event; raises the error of `close`, after what was put before it."""
        while True:
            with self._lock:
                if self._pending:
                    return self._pending.popitem(last=False)[1]
                if self._error is not None:
                    raise self._error
                if self.closed:
                    raise StopAsyncIteration
                # Under the lock: whoever puts from here on wakes again.
                self._waking = False
                self._ready.clear()
            await self._ready.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not (self._closed and not self._pending):
            self.cancel()
