from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

import pytest

from services.runtime.device_worker import DeviceWorker
from services.runtime.errors import UnavailableError

Start = Callable[[Callable[[], bool]], DeviceWorker]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    workers: list[DeviceWorker] = []

    def start_one(step: Callable[[], bool]) -> DeviceWorker:
        workers.append(DeviceWorker("test-device"))
        workers[-1].start(step)
        return workers[-1]

    yield start_one
    for worker in workers:
        await worker.stop()


def nothing_to_do() -> bool:
    return False


async def test_calls_run_in_order_on_the_one_thread(start: Start) -> None:
    worker = start(nothing_to_do)
    ran: list[tuple[int, str]] = []
    await asyncio.gather(
        *(
            worker.call(lambda index: ran.append((index, threading.current_thread().name)), index)
            for index in range(100)
        )
    )
    assert ran == [(index, "test-device") for index in range(100)]


async def test_a_call_returns_its_result_and_raises_its_error(start: Start) -> None:
    worker = start(nothing_to_do)
    assert await worker.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await worker.call(divmod, 1, 0)
    # A failed call is its caller's; the worker goes on.
    assert await worker.call(divmod, 7, 2) == (3, 1)
    assert not worker.failed.done()


async def test_steps_repeat_while_there_is_something_to_do(start: Start) -> None:
    left = 5
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def step() -> bool:
        nonlocal left
        left -= left > 0
        if not left:
            loop.call_soon_threadsafe(done.set)
        return left > 0

    start(step)
    await done.wait()


async def test_an_idle_worker_does_not_spin(start: Start) -> None:
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        return False

    worker = start(step)
    await worker.call(nothing_to_do)
    await asyncio.sleep(0.1)
    # One at the start, one after the call; a spinning loop makes tens of thousands.
    assert steps <= 2


async def test_a_call_goes_between_the_steps_of_a_busy_worker(start: Start) -> None:
    def busy() -> bool:
        time.sleep(0.001)
        return True

    worker = start(busy)
    for _ in range(3):
        assert await worker.call(nothing_to_do) is False


async def test_no_wake_is_lost_however_many_threads_wake(start: Start) -> None:
    """A lost wake leaves items behind, as nobody wakes the worker after the last of them."""
    items: deque[int] = deque()
    taken: list[int] = []
    all_taken = asyncio.Event()
    loop = asyncio.get_running_loop()
    thread_count, item_count = 8, 2000

    def step() -> bool:
        if not items:
            return False
        taken.append(items.popleft())
        if len(taken) == thread_count * item_count:
            loop.call_soon_threadsafe(all_taken.set)
        return True

    worker = start(step)

    def produce() -> None:
        for item in range(item_count):
            items.append(item)
            worker.wake()
            # Lets the worker fall asleep now and then.
            if item % 50 == 0:
                time.sleep(1e-4)

    threads = [threading.Thread(target=produce) for _ in range(thread_count)]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(60):
        await all_taken.wait()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(list(range(item_count)) * thread_count)


async def test_a_wake_per_item_takes_every_item(start: Start) -> None:
    """One item, one wake, one at a time: a single lost wake would hang."""
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []

    def step() -> bool:
        with contextlib.suppress(IndexError):
            loop.call_soon_threadsafe(waiting.pop().set_result, None)
        return False

    worker = start(step)
    for _ in range(3000):
        future = loop.create_future()
        waiting.append(future)
        worker.wake()
        await future


async def test_a_cancelled_call_is_skipped(start: Start) -> None:
    worker = start(nothing_to_do)
    started, release = threading.Event(), threading.Event()
    ran: list[str] = []

    def block() -> None:
        started.set()
        release.wait()

    blocking = worker.call(block)
    await asyncio.to_thread(started.wait)
    cancelled = worker.call(ran.append, "cancelled")
    kept = worker.call(ran.append, "kept")
    cancelled.cancel()
    # The cancellation reaches the worker with the next turn of the loop.
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(blocking, kept)
    assert ran == ["kept"]


async def test_a_failing_step_surfaces_and_fails_the_calls_that_wait(start: Start) -> None:
    entered, release = threading.Event(), threading.Event()
    error = RuntimeError("CUDA error: an illegal memory access was encountered")

    def step() -> bool:
        entered.set()
        release.wait()
        raise error

    worker = start(step)
    await asyncio.to_thread(entered.wait)
    waiting = worker.call(nothing_to_do)
    assert not worker.failed.done()
    release.set()
    assert await worker.failed is error
    with pytest.raises(UnavailableError) as caught:
        await waiting
    assert caught.value.reason == "BACKEND_LOST"
    with pytest.raises(UnavailableError):
        worker.call(nothing_to_do)


async def test_a_stopped_worker_fails_what_waits_and_takes_nothing_more(start: Start) -> None:
    worker = start(nothing_to_do)
    started, release = threading.Event(), threading.Event()

    def block() -> str:
        started.set()
        release.wait()
        return "finished"

    running = worker.call(block)
    await asyncio.to_thread(started.wait)
    waiting = worker.call(nothing_to_do)
    stop = asyncio.create_task(worker.stop())
    with pytest.raises(UnavailableError) as caught:
        await waiting
    assert caught.value.reason == "SHUTTING_DOWN"
    release.set()
    assert await running == "finished"
    await stop
    assert "test-device" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(UnavailableError):
        worker.call(nothing_to_do)
    await worker.stop()


async def test_a_worker_starts_once(start: Start) -> None:
    with pytest.raises(RuntimeError, match="not been started"):
        _ = DeviceWorker("never").failed
    worker = start(nothing_to_do)
    with pytest.raises(RuntimeError, match="started before"):
        worker.start(nothing_to_do)
