"""A trainer service with the Kubernetes backend, against `ApiServer` and `JobController`."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from limner.v1 import training_pb2, training_pb2_grpc
from services.runtime.settings import Address
from services.trainer.server import open_trainer_server
from services.trainer.settings import TrainerSettings
from tests.trainer.cluster.api_server import NAMESPACE, ApiServer, Object, serving_api
from tests.trainer.cluster.job_controller import JobController
from tests.trainer.service.harness import ALICE, Stub, leave_result

QUICK_RUN = [sys.executable, str(Path(__file__).with_name("quick_run.py"))]
RUN_KEY = "k" * 32
State = training_pb2.TrainingJob


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A cluster that is up, and how to serve against it."""

    api: ApiServer
    controller: JobController
    settings: TrainerSettings

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Stub]:
        """A stub to a service that is up for the length of a block."""
        registry = CollectorRegistry()
        async with (
            open_trainer_server(self.settings, registry=registry) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            server.failed.add_done_callback(lambda failed: print(f"failed: {failed.result()!r}"))
            yield training_pb2_grpc.TrainingServiceStub(channel)

    @property
    def job(self) -> Object:
        """The one Job that there is."""
        (job,) = self.api.objects("Job")
        return job

    def output(self, job_id: str) -> Path:
        return self.settings.data_dir / "jobs" / job_id / "output"

    def end(self, job_id: str, exit_code: int) -> None:
        """Have a quick run end."""
        if exit_code == 0:
            leave_result(self.output(job_id))
        written = self.output(job_id) / "end.partial"
        written.write_text(str(exit_code))
        written.rename(written.with_name("end"))  # whole, however often the run looks


@asynccontextmanager
async def cluster(
    base: Path, folder: Path, program: list[str] | None = None, **changes: Any
) -> AsyncIterator[Cluster]:
    async with serving_api() as api:
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(api.kubeconfig())
        controller = JobController(api, folder / "pods", program or QUICK_RUN)
        controller.rendezvous_port = free_port()
        configured = cluster_settings(
            base, folder / "data", kubernetes_config=kubeconfig, **changes
        )
        async with controller.controlling():
            yield Cluster(api=api, controller=controller, settings=configured)


def cluster_settings(base: Path, data: Path, **changes: Any) -> TrainerSettings:
    """Whole settings of a service in a cluster."""
    return TrainerSettings(**_values(base, data, **changes))


def environment(base: Path, data: Path, **changes: Any) -> dict[str, str]:
    """The same as variables, for a service that is a process."""
    values = _values(base, data, **changes)
    return {
        f"LIMNER_TRAINER_{name.upper()}": (
            ",".join(value) if isinstance(value, tuple) else str(value)
        )
        for name, value in values.items()
    }


def _values(base: Path, data: Path, **changes: Any) -> dict[str, Any]:
    reports = Address(f"127.0.0.1:{free_port()}")
    plain: dict[str, Any] = {
        "address": Address("127.0.0.1:0"),
        "base_models": (f"tiny={base}",),
        "data_dir": data,
        "grace_s": 5.0,
        "max_running_jobs": 4,
        "backend": "kubernetes",
        "kubernetes_namespace": NAMESPACE,
        "kubernetes_image": "registry.example/limner:1",
        "kubernetes_volumes": (f"runs={data}", f"models={base}:ro"),
        "kubernetes_gpu_count": 0,
        "kubernetes_reports_address": reports,
        "kubernetes_reports_target": reports,
        "kubernetes_run_key": RUN_KEY,
    }
    return plain | changes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def seen(stub: Stub, job_id: str, fits: Callable[[State], bool]) -> State:
    """Watch a job until it fits, or fail with what it came to."""
    request = training_pb2.WatchTrainingJobRequest(id=job_id)
    last = None
    async for message in stub.WatchTrainingJob(request, metadata=ALICE):
        last = message.job
        if fits(last):
            return last
    raise AssertionError(f"ended otherwise: {last}")


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
