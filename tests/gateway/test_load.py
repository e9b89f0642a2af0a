import asyncio
import random

import grpc

from tests.gateway.fake_backend import backend
from tests.gateway.harness import running_gateway, until

STREAM_COUNT = 200


async def test_200_streams_with_a_third_cancelled_leave_nothing_behind(tmp_path):
    chance = random.Random(2)
    async with (
        backend(artifact_bytes=300_000) as one,
        backend(artifact_bytes=300_000) as other,
        running_gateway(tmp_path, one, other) as door,
    ):
        _ = [event async for event in door.generate()]  # connections and caches are up
        before = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
        async with asyncio.TaskGroup() as group:
            streams = [
                group.create_task(
                    _stream(door, cancel_after=chance.randrange(12) if not number % 3 else None)
                )
                for number in range(STREAM_COUNT)
            ]
        outcomes = [stream.result() for stream in streams]
        finished = outcomes.count("finished")
        assert finished >= STREAM_COUNT - 67
        assert outcomes.count("cancelled") >= 40

        await until(lambda: door.gateway.server.in_flight == 0)
        await until(lambda: len(door.admission.leases) == sum(map(len, door.admission.closings)))
        assert all(len(closings) == 1 for closings in door.admission.closings)
        settled = [lease for lease in door.admission.leases if lease.closings == ["settle"]]
        assert len(settled) >= finished + 1
        assert {lease.delivered.size_bytes for lease in settled} == {300_000}
        assert door.metric("gateway_inflight") == 0
        assert [b.in_flight for b in door.gateway.pool.backends] == [0, 0]
        assert one.running_count == other.running_count == 0
        await until(lambda: _leftovers(before) == set())


async def _stream(door, *, cancel_after):
    call = door.generate(step_count=8)
    count = 0
    try:
        async for _event in call:
            if count == cancel_after:
                call.cancel()
            count += 1
    except asyncio.CancelledError:
        if asyncio.current_task().cancelling():
            raise
        return "cancelled"
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "finished"


def _leftovers(before):
    return {task.get_coro().__qualname__ for task in asyncio.all_tasks()} - before
