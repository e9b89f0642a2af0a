"""Accounts stay exact while everything breaks; prints the balance, fails when it does not add up.

`python -m benchmarks.chaos`. Three gateways share a real Valkey and a real PostgreSQL. Callers of
50 accounts finish, cancel, time out, leave and try again, while gateways are killed with SIGKILL,
Valkey is frozen, restarted and emptied, and PostgreSQL is restarted and crashed. At the end every
picture that was received is in the ledger once, nothing is in it that was not drawn, sums and store
agree, and nothing is held any more.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks.chaos.balance import strike_balance
from benchmarks.chaos.traffic import Traffic
from benchmarks.chaos.world import LEASE_S, World, open_world
from benchmarks.report import json_line, table

_ACCOUNT_COUNT = 50
_FROZEN_S = 2.0
_AWAY_S = 1.0


async def freeze_valkey(world: World) -> None:
    """Valkey answers nothing for two seconds."""
    world.valkey.freeze()
    await asyncio.sleep(_FROZEN_S)
    world.valkey.thaw()


async def restart_valkey(world: World) -> None:
    """Valkey is killed, away for a second, and comes back empty."""
    world.valkey.kill()
    await asyncio.sleep(_AWAY_S)
    await asyncio.to_thread(world.valkey.restart)


async def empty_valkey(world: World) -> None:
    """Everything in Valkey is deleted."""
    await asyncio.to_thread(world.valkey.empty)


async def freeze_valkey_beyond_leases(world: World) -> None:
    """Valkey answers nothing until every lease in it has expired."""
    world.valkey.freeze()
    await asyncio.sleep(LEASE_S + 1)
    world.valkey.thaw()


async def kill_gateway(world: World) -> None:
    """A gateway is killed under its streams and started again."""
    gateway = world.gateways[len(world.events) % len(world.gateways)]
    await asyncio.to_thread(gateway.stop, signal.SIGKILL)
    await asyncio.sleep(_AWAY_S)
    gateway.start()


async def restart_postgresql(world: World) -> None:
    """PostgreSQL ends its connections, shuts down and is started again."""
    await asyncio.to_thread(world.postgresql.stop)
    await asyncio.to_thread(world.postgresql.start)


async def crash_postgresql(world: World) -> None:
    """PostgreSQL aborts in the middle of things and recovers."""
    await asyncio.to_thread(lambda: world.postgresql.stop(sent=signal.SIGQUIT))
    await asyncio.to_thread(world.postgresql.start)


DISASTERS: tuple[Callable[[World], Awaitable[None]], ...] = (
    freeze_valkey,
    kill_gateway,
    restart_valkey,
    restart_postgresql,
    empty_valkey,
    kill_gateway,
    crash_postgresql,
    freeze_valkey_beyond_leases,
)


async def run(request_count: int, worker_count: int) -> int:
    """One run; the exit code."""
    async with open_world(_ACCOUNT_COUNT) as world:
        # A disaster comes each time another part of the requests is done.
        part = max(1, request_count // (len(DISASTERS) + 1))
        due = asyncio.Semaphore(0)
        finished = itertools.count(1)

        def on_done() -> None:
            if next(finished) % part == 0:
                due.release()

        traffic = Traffic(
            world=world, count=request_count, worker_count=worker_count, on_done=on_done
        )
        started = time.monotonic()

        async def bring_disaster() -> None:
            for disaster in DISASTERS:
                await due.acquire()
                await disaster(world)
                world.events.append(disaster.__name__)
                print(f"{time.monotonic() - started:6.1f} s  {disaster.__doc__}", flush=True)

        async with asyncio.TaskGroup() as group:
            group.create_task(traffic.run())
            group.create_task(bring_disaster())
        balance = await strike_balance(world, traffic.requests)
    answers = sorted(traffic.answers.items(), key=lambda item: -item[1])
    print(table(("answer", "attempts"), answers))
    print(table(("balance", ""), [(name, str(value)) for name, value in balance.figures.items()]))
    for mistake in balance.mistakes[:20]:
        print(f"MISTAKE: {mistake}")
    print(f"{len(balance.mistakes)} mistakes" if balance.mistakes else "everything adds up")
    results = {
        "balance": balance.figures,
        "answers": dict(answers),
        "disasters": world.events,
        "mistake_count": len(balance.mistakes),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json_line("chaos", results))
    return 1 if balance.mistakes else 0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=60, help="requests at a time")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(run(arguments.requests, arguments.workers)))


if __name__ == "__main__":
    main()
