"""Many streams, many of them cancelled: afterwards nothing is left of them."""

from __future__ import annotations

import asyncio
import random

from services.client import AsyncClient, Cancelled, GeneratedImage
from tests.e2e.running_suite import RunningSuite, wait_for

_STREAM_COUNT = 200
_STEP_COUNT = 4


async def one_stream(client: AsyncClient, cancel_after_events: int | None) -> str:
    """Read a stream to its end, or close it after some events; return what became of it."""
    pictures = 0
    async with client.stream_generate("a dog", step_count=_STEP_COUNT) as stream:
        try:
            count = 0
            async for event in stream:
                pictures += isinstance(event, GeneratedImage)
                count += 1
                if count == cancel_after_events:
                    stream.close()
        except Cancelled:
            return "cancelled"
    return "finished" if pictures == 1 else "incomplete"


async def wave(suite: RunningSuite, stream_count: int, chance: random.Random) -> list[str]:
    """Streams all at once; a third is closed after 1 to 4 events."""
    async with AsyncClient(suite.address, api_key=suite.key, timeout_s=150) as client:
        return await asyncio.gather(
            *(
                one_stream(client, chance.randint(1, 4) if index % 3 == 0 else None)
                for index in range(stream_count)
            )
        )


def test_200_streams_with_a_third_cancelled_leave_nothing_behind(suite: RunningSuite) -> None:
    chance = random.Random(1)
    asyncio.run(wave(suite, 40, chance))  # pools of threads have grown to their size after this
    wait_for(suite.is_idle, "idle after the first wave")
    threads = (suite.gateway.thread_count, suite.diffusion.thread_count)
    outcomes = asyncio.run(wave(suite, _STREAM_COUNT, chance))
    cancelled_count = len(range(0, _STREAM_COUNT, 3))
    assert outcomes.count("cancelled") == cancelled_count
    assert outcomes.count("finished") == _STREAM_COUNT - cancelled_count
    wait_for(suite.is_idle, "no stream, row or waiting request is left")
    wait_for(
        lambda: (suite.gateway.thread_count, suite.diffusion.thread_count) <= threads,
        "no thread is left",
    )
