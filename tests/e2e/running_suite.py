"""Gateway, diffusion and upscale server as real processes, for tests that look from outside."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from services.client import Client, Model, RetryPolicy
from services.local.process import ServiceSpec
from services.local.settings import SuiteSettings

ROOT = Path(__file__).parents[2]
LIMNER = [sys.executable, "-c", "from services.client.cli import main; main()"]
ONCE = RetryPolicy(max_attempts=1)
START_TIMEOUT_S = 280.0
"""The first start on a machine exports the model's graphs, which is slow beside other work."""
_LONG_RUN_S = 4.0
_PROBE_STEP_COUNT = 10
_ENDLESS_SAMPLE_COUNT = 2


def image_format(path: Path) -> str | None:
    """The format of a picture that can be read whole."""
    with Image.open(path) as picture:
        picture.load()
        return picture.format


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 180.0) -> None:
    """Wait until a condition holds; fail with its name when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.05)


class RunningService:
    """A service process that can be signalled and started again on the same ports."""

    def __init__(self, spec: ServiceSpec, log: Path, environment: dict[str, str]) -> None:
        self._spec = spec
        self._log = log
        self._environment = {**os.environ, **spec.environment, **environment}
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.local.child", self._spec.module],
                env=self._environment,
                stdin=subprocess.PIPE,  # its end ends the service, should these tests be killed
                stdout=log,
                stderr=log,
            )
        return self.process

    def wait_until_ready(self) -> None:
        wait_for(self._is_ready, f"{self._spec.name} is ready", START_TIMEOUT_S)

    def end(self, number: signal.Signals) -> int:
        """Send a signal, wait and return the exit code."""
        self.process.send_signal(number)
        return self.wait_for_end()

    def wait_for_end(self) -> int:
        """Wait for the process and return its exit code."""
        code = self.process.wait(timeout=120)
        assert self.process.stdin is not None
        self.process.stdin.close()
        return code

    @property
    def thread_count(self) -> int:
        return psutil.Process(self.process.pid).num_threads()

    def _is_ready(self) -> bool:
        code = self.process.poll()
        assert code is None, (
            f"{self._spec.name} exited with {code}: {self._log.read_text()[-2000:]}"
        )
        request = health_pb2.HealthCheckRequest(service=self._spec.health_service)
        with grpc.insecure_channel(self._spec.address) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class RunningSuite:
    """Both services, the key to them, and what their metrics say."""

    def __init__(self, settings: SuiteSettings, environment: dict[str, str]) -> None:
        pepper = asyncio.run(settings.data.prepare())
        self._settings = settings
        self.address = settings.address
        self.key = settings.data.read_key()
        logs = settings.data.logs
        self.diffusion = RunningService(settings.diffusion(), logs / "diffusion.log", environment)
        self.upscale = RunningService(settings.upscale(), logs / "upscale.log", environment)
        self.gateway = RunningService(settings.gateway(pepper), logs / "gateway.log", environment)

    @property
    def _services(self) -> tuple[RunningService, ...]:
        return self.gateway, self.diffusion, self.upscale

    def wait_until_ready(self) -> None:
        self.diffusion.wait_until_ready()
        self.upscale.wait_until_ready()
        self.gateway.wait_until_ready()

    def client(self, *, key: str | None = None, retry: RetryPolicy | None = None) -> Client:
        return Client(self.address, api_key=key or self.key, retry=retry, timeout_s=120)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, from whichever service has it."""
        service = name.partition("_")[0]
        urls = self._settings.metrics_urls
        url = urls.get(service, urls["diffusion"])
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=10) as response:
            text = response.read().decode()
        samples = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        ]
        assert samples, f"there is no metric {name}"
        return math.fsum(samples)

    def is_idle(self) -> bool:
        names = ("gateway_inflight", "diffusion_running", "diffusion_queue_depth")
        names += ("upscale_running", "upscale_queue_depth")
        return all(self.metric(name) == 0 for name in names)

    def environment(self) -> dict[str, str]:
        """Variables for a command that is to use this suite."""
        return {**os.environ, "LIMNER_ADDRESS": self.address, "LIMNER_API_KEY": self.key}

    def limner(self, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run the command in `folder`."""
        return subprocess.run(
            [*LIMNER, *arguments],
            cwd=folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def long_run(self) -> dict[str, Any]:
        """Options of a run that takes some seconds on this machine when it runs alone."""
        with self.client() as client:
            model = _drawing_model(client)
            start = time.monotonic()
            client.generate("warm", step_count=_PROBE_STEP_COUNT, sampler="ddim")
            step_s = (time.monotonic() - start) / _PROBE_STEP_COUNT
        total = math.ceil(_LONG_RUN_S / step_s)
        return {"sampler": "ddim", **_split_steps(model, total)}

    def endless_run(self) -> dict[str, Any]:
        """Options of a run that is still there when a test ends it, on any machine."""
        with self.client() as client:
            limits = _drawing_model(client).limits
        assert limits is not None, "the model draws"
        samples = min(limits.max_sample_count, _ENDLESS_SAMPLE_COUNT)
        return {"step_count": limits.max_step_count, "sample_count": samples}

    def stop(self) -> tuple[int, ...]:
        """Stop all and return their exit codes, the gateway's first."""
        return tuple(service.end(signal.SIGTERM) for service in self._services)

    def kill(self) -> None:
        for service in self._services:
            service.end(signal.SIGKILL)


@contextmanager
def running_suite(settings: SuiteSettings, environment: dict[str, str]) -> Iterator[RunningSuite]:
    suite = RunningSuite(settings, environment)
    try:
        suite.wait_until_ready()
        yield suite
        suite.wait_until_ready()  # the last test may have started one again
        assert suite.stop() == (0, 0, 0)
    finally:
        suite.kill()


def _drawing_model(client: Client) -> Model:
    return next(each for each in client.models() if each.limits is not None)


def _split_steps(model: Model, total_step_count: int) -> dict[str, int]:
    """Spread steps over samples, within the limits of the model."""
    limits = model.limits
    assert limits is not None, "the model draws"
    samples = math.ceil(total_step_count / limits.max_step_count)
    samples = min(max(samples, 1), limits.max_sample_count)
    steps = min(math.ceil(total_step_count / samples), limits.max_step_count)
    return {"step_count": steps, "sample_count": samples}
