from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import InternalError, QueueFullError
from services.runtime.event_channel import EventChannel


async def drained(channel: EventChannel[str]) -> list[str]:
    return [event async for event in channel]


async def test_the_latest_of_a_key_wins_and_other_keys_are_their_own() -> None:
    channel: EventChannel[str] = EventChannel()
    for index in range(3):
        channel.put_latest("progress", f"progress {index}")
        channel.put_latest(("preview", 0), f"preview {index}")
    channel.close()
    assert await drained(channel) == ["progress 2", "preview 2"]


async def test_artifacts_are_never_dropped_and_all_stays_in_order() -> None:
    channel: EventChannel[str] = EventChannel()
    channel.put_latest("progress", "progress 1")
    channel.put("artifact")
    channel.put_latest("progress", "progress 2")
    channel.put("artifact")
    channel.close()
    assert await drained(channel) == ["artifact", "progress 2", "artifact"]


async def test_a_close_with_an_error_raises_after_what_waits() -> None:
    channel: EventChannel[str] = EventChannel()
    channel.put("artifact")
    error = QueueFullError(retry_after_s=1)
    channel.close(error)
    channel.close(InternalError())
    channel.put("too late")
    assert await anext(channel) == "artifact"
    with pytest.raises(QueueFullError) as caught:
        await anext(channel)
    assert caught.value is error


async def test_a_waiting_consumer_is_woken_by_another_thread() -> None:
    channel: EventChannel[str] = EventChannel()
    reading = asyncio.create_task(anext(channel))
    await asyncio.sleep(0)
    await asyncio.to_thread(channel.put, "artifact")
    assert await reading == "artifact"


async def test_a_consumer_that_is_cancelled_turns_puts_into_no_ops() -> None:
    channel: EventChannel[str] = EventChannel()

    async def consume() -> None:
        with channel:
            async for _ in channel:
                pass

    consumer = asyncio.create_task(consume())
    await asyncio.sleep(0)
    assert not channel.cancelled
    consumer.cancel()
    await asyncio.gather(consumer, return_exceptions=True)
    assert channel.cancelled
    assert channel.closed
    channel.put("artifact")
    channel.put_latest("progress", "progress")
    assert await drained(channel) == []


async def test_a_handler_that_is_closed_while_it_yields_is_seen_by_the_producer() -> None:
    channel: EventChannel[str] = EventChannel()

    async def handler() -> AsyncIterator[str]:
        with channel:
            async for event in channel:
                yield event

    responses = handler()
    channel.put("artifact")
    assert await anext(responses) == "artifact"
    await responses.aclose()  # type: ignore[attr-defined]
    assert channel.cancelled


async def test_a_consumer_that_read_to_the_end_has_not_cancelled() -> None:
    channel: EventChannel[str] = EventChannel()
    channel.put("artifact")
    channel.close()
    with channel:
        assert await drained(channel) == ["artifact"]
    assert not channel.cancelled
    assert channel.closed


async def test_leaving_frees_what_waits_and_ends_a_reader() -> None:
    channel: EventChannel[str] = EventChannel()
    reading = asyncio.create_task(drained(channel))
    await asyncio.sleep(0)
    channel.cancel()
    assert await reading == []


def test_a_channel_whose_loop_is_closed_is_cancelled() -> None:
    async def make() -> EventChannel[str]:
        return EventChannel()

    channel = asyncio.run(make())
    channel.put("artifact")
    assert channel.cancelled


async def test_wake_ups_are_coalesced() -> None:
    """A device thread must not cost the loop a callback per event."""
    calls = 0
    loop = asyncio.get_running_loop()
    call_soon_threadsafe = loop.call_soon_threadsafe

    def counting(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        return call_soon_threadsafe(*arguments)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = counting  # type: ignore[assignment, method-assign]
    channel: EventChannel[str] = EventChannel()
    for _ in range(1000):
        channel.put("artifact")
    channel.close()
    assert len(await drained(channel)) == 1000
    assert calls == 1


async def test_no_event_and_no_wake_up_is_lost_under_many_producers() -> None:
    channel: EventChannel[tuple[int, str, int]] = EventChannel()
    thread_count, artifact_count = 6, 1500
    finished = threading.Barrier(thread_count, action=channel.close)

    def produce(thread: int) -> None:
        jitter = random.Random(thread)
        for index in range(artifact_count):
            channel.put_latest(thread, (thread, "progress", index))
            if jitter.random() < 0.3:
                threading.Event().wait(1e-6)
            channel.put((thread, "artifact", index))
        finished.wait()

    threads = [threading.Thread(target=produce, args=(thread,)) for thread in range(thread_count)]
    for thread in threads:
        thread.start()
    received = [event async for event in channel]
    for thread in threads:
        thread.join()

    for number in range(thread_count):
        of_thread = [(kind, index) for thread, kind, index in received if thread == number]
        artifacts = [index for kind, index in of_thread if kind == "artifact"]
        progress = [index for kind, index in of_thread if kind == "progress"]
        assert artifacts == list(range(artifact_count))
        assert progress == sorted(set(progress))


@given(
    puts=st.lists(st.tuples(st.sampled_from(["artifact", "progress", "preview"]), st.integers()))
)
def test_what_is_delivered_is_every_artifact_and_the_last_of_each_key(
    puts: list[tuple[str, int]],
) -> None:
    async def deliver() -> list[tuple[str, int]]:
        channel: EventChannel[tuple[str, int]] = EventChannel()
        for event in puts:
            if event[0] == "artifact":
                channel.put(event)
            else:
                channel.put_latest(event[0], event)
        channel.close()
        return [event async for event in channel]

    last = {kind: position for position, (kind, _) in enumerate(puts)}
    expected = [
        event
        for position, event in enumerate(puts)
        if event[0] == "artifact" or last[event[0]] == position
    ]
    assert asyncio.run(deliver()) == expected
