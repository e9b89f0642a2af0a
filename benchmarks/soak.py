"""Minutes of load with random cancels: is memory flat, and is anything left behind?

`python -m benchmarks.soak` runs gateway and diffusion server as `limner up` does and keeps 200
streams under way for ten minutes, a third of which are cancelled at a random moment. It samples
the memory of both processes, and at the end asks their metrics what is left. Exits non-zero when
memory grew by more than 5 % or anything is left.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import report
from services.client import AsyncClient, GeneratedImage
from services.local.settings import SuiteSettings, plan_suite
from services.local.suite import Suite, run_suite

PROMPTS = ("a red apple", "a dog face", "a rocket on a blue background", "a house", "a guitar")
LEFT_BEHIND = ("gateway_inflight", "diffusion_running", "diffusion_queue_depth")
SAMPLE_EVERY_S = 5.0
GROWTH_LIMIT = 1.05


class Load:
    """Clients that draw and cancel until told to stop."""

    def __init__(self, client: AsyncClient, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._client = client
        self._chance = random.Random(seed)

    async def run(self, stream_count: int, end_s: float) -> None:
        """Keep `stream_count` streams under way until the monotonic clock reads `end_s`."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(stream_count):
                clients.create_task(self._client_loop(end_s))

    async def _client_loop(self, end_s: float) -> None:
        while time.monotonic() < end_s:
            patience_s = self._chance.uniform(0.01, 5.0) if self._chance.random() < 1 / 3 else None
            try:
                async with asyncio.timeout(patience_s):
                    self.outcomes[await self._draw()] += 1
            except TimeoutError:
                self.outcomes["cancelled"] += 1

    async def _draw(self) -> str:
        request = self._client.stream_generate(
            self._chance.choice(PROMPTS),
            step_count=self._chance.choice((1, 2, 4)),
            seed=self._chance.randrange(2**32),
        )
        async with request as stream:
            pictures = [event async for event in stream if isinstance(event, GeneratedImage)]
        return "finished" if len(pictures) == 1 else "incomplete"


def main() -> int:
    """Run the soak, print what was found, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="limner-soak-") as folder:
        settings = plan_suite(Path(folder), port=None, models=None)
        result = asyncio.run(_soak(settings, options.minutes, options.streams))
    rows = [
        (name, facts["early_mib"], facts["late_mib"], facts["growth"])
        for name, facts in result["memory"].items()
    ]
    print(report.table(("process", "early MiB", "late MiB", "growth"), rows))
    print(f"streams: {result['outcomes']}; left behind: {result['left_behind']}")
    print(report.json_line("soak", result))
    return 0 if result["flat"] and result["clean"] else 1


async def _soak(settings: SuiteSettings, minutes: float, stream_count: int) -> dict[str, Any]:
    pepper = await settings.data.prepare()

    async def body(suite: Suite) -> dict[str, Any]:
        await suite.wait_until_ready(lambda _name, _state: None)
        processes = {p.spec.name: psutil.Process(p.pid) for p in suite.processes}
        end_s = time.monotonic() + minutes * 60
        async with AsyncClient(settings.address, api_key=settings.data.read_key()) as client:
            load = Load(client, seed=0)
            memory = asyncio.create_task(_sample(processes, end_s))
            await load.run(stream_count, end_s)
        left = await _settled([settings.metrics_urls[name] for name in processes])
        summary = {name: _growth(samples) for name, samples in (await memory).items()}
        return {
            "minutes": minutes,
            "streams": stream_count,
            "outcomes": dict(load.outcomes),
            "memory": summary,
            "left_behind": left,
            "flat": all(facts["growth"] <= GROWTH_LIMIT for facts in summary.values()),
            "clean": not any(left.values()) and not load.outcomes["incomplete"],
        }

    specs = (settings.gateway(pepper, upscales=False), settings.diffusion())
    return await run_suite(specs, settings.data.logs, body, on_stop=lambda: None)


async def _sample(processes: dict[str, psutil.Process], end_s: float) -> dict[str, list[float]]:
    """Resident MiB of every process, every few seconds."""
    samples: dict[str, list[float]] = {name: [] for name in processes}
    while time.monotonic() < end_s:
        for name, process in processes.items():
            samples[name].append(process.memory_info().rss / 2**20)
        await asyncio.sleep(SAMPLE_EVERY_S)
    return samples


def _growth(samples: list[float]) -> dict[str, float]:
    """Median of the last fifth beside that of the second fifth: the first one warms up."""
    fifth = max(1, len(samples) // 5)
    early = statistics.median(samples[fifth : 2 * fifth] or samples)
    late = statistics.median(samples[-fifth:])
    return {"early_mib": round(early), "late_mib": round(late), "growth": round(late / early, 3)}


async def _settled(urls: Sequence[str]) -> dict[str, float]:
    """What the metrics say is still under way, after up to ten seconds to settle."""
    for _ in range(100):
        left = await asyncio.to_thread(_left_behind, urls)
        if not any(left.values()):
            break
        await asyncio.sleep(0.1)
    return left


def _left_behind(urls: Sequence[str]) -> dict[str, float]:
    left = dict.fromkeys(LEFT_BEHIND, 0.0)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for url in urls:
        with opener.open(url, timeout=10) as response:
            for family in text_string_to_metric_families(response.read().decode()):
                for sample in family.samples:
                    if sample.name in left:
                        left[sample.name] += sample.value
    return left


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
