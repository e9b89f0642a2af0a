"""Real processes: start, readiness, death, order of stopping, and that none is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.local import suite as suite_module
from services.local.ports import HOST, free_port
from services.local.process import ServiceSpec
from services.local.readiness import State
from services.local.suite import Restart, ServiceDied, Stopped, Suite, run_suite

ROOT = Path(__file__).parents[2]


def spec(name: str, folder: Path, **environment: str) -> ServiceSpec:
    address = f"{HOST}:{free_port()}"
    return ServiceSpec(
        name=name,
        module="tests.local.fake_service",
        address=address,
        health_service="fake",
        environment={
            "PYTHONPATH": str(ROOT),
            "FAKE_ADDRESS": address,
            "FAKE_NAME": name,
            "FAKE_JOURNAL": str(folder / "journal"),
            **environment,
        },
        grace_s=30,
    )


def journal(folder: Path) -> list[str]:
    return (folder / "journal").read_text().split()


def nothing() -> None:
    """Stands for a caller that has nothing to say."""


def pids(suite: Suite) -> list[int]:
    return [process.pid for process in suite.processes]


async def test_services_become_ready_and_are_stopped_in_order(tmp_path: Path) -> None:
    states: list[tuple[str, State]] = []
    seen: list[int] = []

    async def body(suite: Suite) -> str:
        await suite.wait_until_ready(lambda name, state: states.append((name, state)))
        seen.extend(pids(suite))
        return "result"

    specs = [spec("first", tmp_path), spec("second", tmp_path)]
    assert await run_suite(specs, tmp_path, body, on_stop=nothing) == "result"
    assert journal(tmp_path) == ["first", "second"]
    for name in ("first", "second"):
        own = [state for each, state in states if each == name]
        assert (own[0], own[-1]) == (State.STARTING, State.READY)
    assert not any(psutil.pid_exists(pid) for pid in seen)


async def test_a_service_that_dies_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    specs = [spec("good", tmp_path), spec("bad", tmp_path, FAKE_EXIT_CODE="3")]

    async def body(suite: Suite) -> None:
        await suite.wait_until_ready(lambda name, state: None)

    with pytest.raises(ServiceDied, match="bad exited with 3") as caught:
        await run_suite(specs, tmp_path, body, on_stop=nothing)
    assert "plain line\nERROR no model here" in caught.value.log_tail


async def test_death_is_the_reason_when_the_body_fails_of_it(tmp_path: Path) -> None:
    async def body(suite: Suite) -> None:
        await suite.wait_until_ready(lambda name, state: None)
        os.kill(suite.processes[0].pid, signal.SIGKILL)
        raise ConnectionError("lost")

    with pytest.raises(ServiceDied, match="only was ended by SIGKILL"):
        await run_suite([spec("only", tmp_path)], tmp_path, body, on_stop=nothing)


async def test_a_service_that_was_ready_is_started_again_three_times(tmp_path: Path) -> None:
    told: list[str] = []
    ready = asyncio.Semaphore(0)
    seen: list[int] = []

    def on_state(name: str, state: State) -> None:
        if (name, state) == ("weak", State.READY):
            ready.release()

    async def body(suite: Suite) -> None:
        await suite.wait_until_ready(on_state)
        while True:
            await ready.acquire()
            seen.append(suite.processes[1].pid)
            os.kill(seen[-1], signal.SIGKILL)

    restart = Restart(on_death=lambda death: told.append(str(death)), on_state=on_state)
    specs = [spec("good", tmp_path), spec("weak", tmp_path)]
    with pytest.raises(ServiceDied, match="weak was ended by SIGKILL, perhaps for want of memory"):
        await run_suite(specs, tmp_path, body, on_stop=nothing, restart=restart)
    assert told == ["weak was ended by SIGKILL, perhaps for want of memory"] * 3
    assert len(set(seen)) == len(seen) == 4
    assert journal(tmp_path) == ["good"]


async def test_a_restart_that_comes_to_nothing_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_module, "_RETRY_DELAY_S", 0.1)
    fault = tmp_path / "fault"
    told: list[str] = []
    again = asyncio.Event()
    states: list[State] = []

    def on_death(death: ServiceDied) -> None:
        told.append(str(death))
        if len(told) == 2:
            fault.unlink()

    async def body(suite: Suite) -> None:
        await suite.wait_until_ready(lambda name, state: None)
        fault.touch()
        os.kill(suite.processes[0].pid, signal.SIGKILL)
        await again.wait()
        await asyncio.sleep(1.5)  # another watch of the same service would have told by now

    def on_state(name: str, state: State) -> None:
        states.append(state)
        if state is State.READY:
            again.set()

    restart = Restart(on_death=on_death, on_state=on_state)
    weak = spec("weak", tmp_path, FAKE_EXIT_CODE="3", FAKE_WHILE=str(fault))
    await run_suite([weak], tmp_path, body, on_stop=nothing, restart=restart)
    assert told == ["weak was ended by SIGKILL, perhaps for want of memory", "weak exited with 3"]
    assert states.count(State.READY) == 1


async def test_a_service_that_was_never_ready_is_not_started_again(tmp_path: Path) -> None:
    async def body(suite: Suite) -> None:
        await suite.wait_until_ready(lambda name, state: None)

    restart = Restart(on_death=lambda death: pytest.fail(str(death)), on_state=lambda *_: None)
    with pytest.raises(ServiceDied, match="bad exited with 3"):
        await run_suite(
            [spec("bad", tmp_path, FAKE_EXIT_CODE="3")],
            tmp_path,
            body,
            on_stop=nothing,
            restart=restart,
        )


async def test_an_error_of_the_body_stops_the_services(tmp_path: Path) -> None:
    async def body(suite: Suite) -> None:
        await suite.wait_until_ready(lambda name, state: None)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await run_suite([spec("only", tmp_path)], tmp_path, body, on_stop=nothing)
    assert journal(tmp_path) == ["only"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_drains_the_services(tmp_path: Path, number: signal.Signals) -> None:
    told: list[str] = []

    async def body(suite: Suite) -> None:
        await suite.wait_until_ready(lambda name, state: None)
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    with pytest.raises(Stopped):
        await run_suite(
            [spec("only", tmp_path)], tmp_path, body, on_stop=lambda: told.append("stopping")
        )
    assert told == ["stopping"]
    assert journal(tmp_path) == ["only"]


async def test_a_second_signal_kills_what_does_not_drain(tmp_path: Path) -> None:
    seen: list[int] = []

    async def body(suite: Suite) -> None:
        await suite.wait_until_ready(lambda name, state: None)
        seen.extend(pids(suite))
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    def on_stop() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        await run_suite([spec("deaf", tmp_path, FAKE_DEAF="1")], tmp_path, body, on_stop=on_stop)
    assert not any(psutil.pid_exists(pid) for pid in seen)


async def test_the_log_of_the_run_before_is_kept(tmp_path: Path) -> None:
    (tmp_path / "only.log").write_text("older")

    async def body(suite: Suite) -> None:
        await suite.wait_until_ready(lambda name, state: None)

    await run_suite([spec("only", tmp_path)], tmp_path, body, on_stop=nothing)
    assert (tmp_path / "only.log.1").read_text() == "older"


_ORPHAN_MAKER = """
import asyncio, sys
from pathlib import Path
from services.local.suite import run_suite
from tests.local.test_suite import spec

async def body(suite):
    await suite.wait_until_ready(lambda name, state: None)
    print(suite.processes[0].pid, flush=True)
    await asyncio.Event().wait()

folder = Path(sys.argv[1])
asyncio.run(run_suite([spec("child", folder)], folder, body, on_stop=lambda: None))
"""


def test_services_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ORPHAN_MAKER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([child], timeout=120)
    assert not child.is_running()
    assert journal(tmp_path) == ["child"]
