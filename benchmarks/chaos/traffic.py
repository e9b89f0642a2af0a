"""The callers: requests that are finished, cancelled, timed out, abandoned and tried again.

A request keeps its id over all attempts, as a careful client does. What arrived completely is
remembered, whichever attempt brought it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from benchmarks.chaos.world import World
from limner.v1 import generation_pb2, generation_pb2_grpc

_RETRY_FOR_S = 60.0
_ATTEMPT_TIMEOUT_S = 60.0
_FINAL = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED})


@dataclass(kw_only=True)
class Request:
    """What a caller wants, and what it has got of it."""

    account: str
    request_id: str
    picture_count: int
    is_impatient: bool
    """Leaves its first attempt at a random moment."""
    is_abandoned: bool = False
    received: set[int] = field(default_factory=set)
    end: str = ""


@dataclass(kw_only=True)
class Traffic:
    """Makes `count` requests, `worker_count` at a time; `on_done` hears of each that ended."""

    world: World
    count: int
    worker_count: int
    on_done: Callable[[], None]
    chance: random.Random = field(default_factory=lambda: random.Random(4))
    requests: list[Request] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """Returns when every request came to an end."""
        accounts = sorted(self.world.keys)
        numbers = iter(range(self.count))
        channels = [
            grpc.aio.insecure_channel(
                gateway.address,
                [("grpc.enable_retries", 0), ("grpc.max_reconnect_backoff_ms", 500)],
            )
            for gateway in self.world.gateways
        ]
        stubs = [generation_pb2_grpc.GenerationServiceStub(channel) for channel in channels]

        async def work() -> None:
            for number in numbers:
                request = Request(
                    account=self.chance.choice(accounts),
                    request_id=f"request-{number}",
                    picture_count=self.chance.choice((1, 1, 2, 3)),
                    is_impatient=self.chance.random() < 0.25,
                )
                self.requests.append(request)
                await self._see_through(request, stubs)
                self.on_done()

        async with asyncio.TaskGroup() as group:
            for _ in range(self.worker_count):
                group.create_task(work())
        for channel in channels:
            await channel.close()

    async def _see_through(
        self, request: Request, stubs: Sequence[generation_pb2_grpc.GenerationServiceAsyncStub]
    ) -> None:
        give_up_at = asyncio.get_running_loop().time() + _RETRY_FOR_S
        delay_s = 0.1
        leaving = request.is_impatient
        while True:
            answer, is_final = await self._attempt(request, self.chance.choice(stubs), leaving)
            self.answers[answer] += 1
            if leaving and answer in ("cancelled", "DEADLINE_EXCEEDED"):
                request.is_abandoned = self.chance.random() < 0.5
                is_final = request.is_abandoned
            leaving = False
            is_late = asyncio.get_running_loop().time() > give_up_at
            if is_final or is_late:
                request.end = answer
                request.is_abandoned |= not (is_final and answer == "OK")
                return
            await asyncio.sleep(delay_s * self.chance.uniform(0.5, 1))
            delay_s = min(2.0, 2 * delay_s)

    async def _attempt(
        self,
        request: Request,
        stub: generation_pb2_grpc.GenerationServiceAsyncStub,
        leaving: bool,
    ) -> tuple[str, bool]:
        """How an attempt ended, and whether there is no point in another."""
        message = generation_pb2.GenerateImageRequest(
            prompt="dots", width=1000, height=1000, step_count=1, sample_count=request.picture_count
        )
        cancels = leaving and self.chance.random() < 0.6
        timeout_s = self.chance.uniform(0.01, 0.15) if leaving else _ATTEMPT_TIMEOUT_S
        call = stub.GenerateImage(
            message,
            timeout=_ATTEMPT_TIMEOUT_S if cancels else timeout_s,
            metadata=(
                ("authorization", f"Bearer {self.world.keys[request.account]}"),
                ("x-request-id", request.request_id),
            ),
        )
        events_left = self.chance.randrange(2 * request.picture_count + 1)
        try:
            async for event in call:
                if event.artifact.last:
                    request.received.add(event.artifact.index)
                if cancels and not events_left:
                    call.cancel()
                    return "cancelled", False
                events_left -= 1
        except grpc.aio.AioRpcError as error:
            reason = _reason(error)
            is_final = error.code() in _FINAL and reason != "CONCURRENCY_LIMITED"
            return f"{error.code().name} {reason}".strip(), is_final
        return "OK", True


def _reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(cast("grpc.Call", error))
    info = error_details_pb2.ErrorInfo()
    if status is None or not status.details or not status.details[0].Unpack(info):
        return ""
    return str(info.reason)
