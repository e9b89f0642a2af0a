"""The processes of a suite: started together, watched together, stopped in order.

Used by `up` and `demo`. Requests come in through the first service and go on to the later ones, so
that the first is stopped first: what it still relays can finish. A service that was ready and ended
by itself is started again where the caller wants that; one that never was, or that ends again and
again, ends the suite.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from services.local.process import ServiceProcess, ServiceSpec, start_process
from services.local.readiness import State, wait_until_ready

_Result = TypeVar("_Result")

StateListener = Callable[[str, State], None]
"""Hears the name of a service and its new state."""

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEATH_NOTICE_S = 0.5
_MAX_RESTART_COUNT = 3
_RESTART_WINDOW_S = 600.0
"""A service is started again at most `_MAX_RESTART_COUNT` times in so long."""
_RETRY_DELAY_S = 5.0
"""Before another start of a service that a restart did not make ready."""


class ServiceDied(Exception):
    """A service ended by itself."""

    def __init__(self, process: ServiceProcess, code: int) -> None:
        super().__init__(f"{process.spec.name} {_how_it_ended(code)}")
        self.process = process
        self.log_tail = process.log_tail()


class Stopped(Exception):
    """A signal asked the suite to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Restart:
    """Who hears of a service that ended by itself and is started again."""

    on_death: Callable[[ServiceDied], None]
    on_state: StateListener


class Suite:
    """Running services, in the order in which they are stopped."""

    def __init__(self) -> None:
        self.processes: list[ServiceProcess] = []
        self._ready: set[str] = set()
        """Services that were ready at some time."""
        self._up: set[str] = set()
        """Those that were ready since they were last started."""
        self._restarts: defaultdict[str, list[float]] = defaultdict(list)

    async def wait_until_ready(self, on_state: StateListener) -> None:
        """Return when every service is ready."""
        async with asyncio.TaskGroup() as group:
            for process in self.processes:
                group.create_task(self._wait_until_ready(process.spec, on_state))

    async def start(self, specs: Sequence[ServiceSpec], logs_dir: Path) -> None:
        """Start the services. Raises OSError; those that were started are in `processes`."""
        for spec in specs:
            self.processes.append(await start_process(spec, logs_dir))

    async def wait_for_death(self) -> ServiceDied:
        """Wait until a service ends and return what there is to say."""
        ends = {asyncio.create_task(process.wait()): process for process in self.processes}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
        return next(
            ServiceDied(process, task.result()) for task, process in ends.items() if task.done()
        )

    async def supervise(self, logs_dir: Path, restart: Restart | None) -> ServiceDied:
        """Start services that end by themselves again; return the first end that is final."""
        watches: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                death = await self.wait_for_death()
                spec = death.process.spec
                if restart is None or not self._may_restart(spec.name):
                    return death
                restart.on_death(death)
                if (watch := watches.get(spec.name)) is not None:
                    watch.cancel()  # it would tell of the next process, too
                if spec.name not in self._up:
                    await asyncio.sleep(_RETRY_DELAY_S)
                self._up.discard(spec.name)
                place = self.processes.index(death.process)
                self.processes[place] = await start_process(spec, logs_dir)
                watching = self._wait_until_ready(spec, restart.on_state)
                watches[spec.name] = asyncio.create_task(watching)
        finally:
            for watch in watches.values():
                watch.cancel()
            await asyncio.gather(*watches.values(), return_exceptions=True)

    async def stop(self) -> None:
        """Drain one service after the other; returns when all are gone."""
        for process in self.processes:
            await process.stop()

    def kill(self) -> None:
        """End all at once."""
        for process in self.processes:
            process.kill()

    def _may_restart(self, name: str) -> bool:
        """Count a restart if the service was ever ready and has not ended too often."""
        if name not in self._ready:
            return False
        now = time.monotonic()
        recent = [each for each in self._restarts[name] if now - each < _RESTART_WINDOW_S]
        self._restarts[name] = [*recent, now]
        return len(recent) < _MAX_RESTART_COUNT

    async def _wait_until_ready(self, spec: ServiceSpec, on_state: StateListener) -> None:
        def tell(state: State) -> None:
            if state is State.READY:
                self._ready.add(spec.name)
                self._up.add(spec.name)
            on_state(spec.name, state)

        await wait_until_ready(spec.address, spec.health_service, tell)


async def run_suite(
    specs: Sequence[ServiceSpec],
    logs_dir: Path,
    body: Callable[[Suite], Awaitable[_Result]],
    *,
    on_stop: Callable[[], None],
    restart: Restart | None = None,
) -> _Result:
    """Run services for as long as `body` does and return its result; none is left afterwards.

    `body` is cancelled when a service ends by itself and is not started again, as without `restart`
    (raises ServiceDied), and when SIGINT, SIGTERM or SIGHUP arrives (calls `on_stop`, raises
    Stopped). In any case the services are drained in order; a second signal kills what is left.
    """
    suite = Suite()
    stop_requested = asyncio.Event()

    def on_signal() -> None:
        if stop_requested.is_set():
            suite.kill()
        else:
            stop_requested.set()
            on_stop()

    with _handled(on_signal):
        try:
            await suite.start(specs, logs_dir)
            death = asyncio.create_task(suite.supervise(logs_dir, restart))
            return await _run_body(suite, body, death, stop_requested)
        finally:
            stop_requested.set()
            await suite.stop()


async def _run_body(
    suite: Suite,
    body: Callable[[Suite], Awaitable[_Result]],
    death: asyncio.Task[ServiceDied],
    stop_requested: asyncio.Event,
) -> _Result:
    work = asyncio.ensure_future(body(suite))
    stop = asyncio.create_task(stop_requested.wait())
    tasks: list[asyncio.Future[Any]] = [work, death, stop]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if work.done() and work.exception() is not None:
            # A lost connection is often noticed before the death of the process behind it.
            await asyncio.wait([death], timeout=_DEATH_NOTICE_S)
        if stop.done():
            raise Stopped
        if death.done():
            raise death.result()
        return work.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exited with {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


@contextmanager
def _handled(handler: Callable[[], None]) -> Iterator[None]:
    """Have the event loop call `handler` at each signal that asks to stop."""
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
