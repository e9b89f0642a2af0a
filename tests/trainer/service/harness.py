"""A real trainer server on a free port, and a backend whose runs do as they are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import yaml
from prometheus_client import CollectorRegistry

from limner.v1 import training_pb2, training_pb2_grpc
from services.runtime.settings import Address
from services.trainer.backends.backend import RunBackend, RunEnd, RunWait
from services.trainer.job import TrainingJob
from services.trainer.server import open_trainer_server
from services.trainer.settings import TrainerSettings

ALICE = (("x-limner-account", "alice"),)
BOB = (("x-limner-account", "bob"),)
Stub: TypeAlias = "training_pb2_grpc.TrainingServiceAsyncStub"


class ToldRun:
    """Ends when it is told, or with 143 when it is asked to stop."""

    def __init__(self, configuration: Path) -> None:
        self.tree: dict[str, Any] = yaml.safe_load(configuration.read_text())
        self.end: asyncio.Future[RunEnd] = asyncio.get_running_loop().create_future()
        self.waiting: RunWait | None = None
        self.deaf = False
        """Whether it ends only when it is told."""

    async def ended(self) -> RunEnd:
        return await asyncio.shield(self.end)

    async def stop(self) -> None:
        if not self.deaf:
            self.finish(143)

    def say(self, **status: Any) -> None:
        plain = {
            "state": "running",
            "step": 0,
            "step_count": 4,
            "class_picture_count": 0,
            "losses": None,
            "validation_loss": None,
            "eta_s": None,
        }
        path = Path(self.tree["output"]) / "status.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(plain | status))
        partial.replace(path)

    def finish(self, exit_code: int) -> None:
        if exit_code == 0:
            leave_result(Path(self.tree["output"]))
        if not self.end.done():
            self.end.set_result(RunEnd(exit_code=exit_code))


def leave_result(output: Path) -> None:
    """What a run leaves that succeeded, with next to nothing in it."""
    result = output / "result"
    (result / "model").mkdir(parents=True, exist_ok=True)
    (result / "model" / "model_index.json").write_text("{}")
    (result / "configuration.yaml").write_text(yaml.safe_dump({"method": "lora"}))
    facts = {"base_revision": "0" * 16, "dataset_digest": "1" * 64}
    (result / "run.json").write_text(json.dumps(facts))


class ToldBackend:
    """Keeps the runs that were started."""

    outlives_service = False
    status_interval_s = 0.1

    def __init__(self) -> None:
        self.runs: asyncio.Queue[ToldRun] = asyncio.Queue()

    def opened(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def attach(self, job: TrainingJob) -> ToldRun | None:
        return None

    async def forget(self, job_id: str) -> None:
        pass

    async def start(self, job: TrainingJob, configuration: Path) -> ToldRun:
        run = ToldRun(configuration)
        await self.runs.put(run)
        return run


def settings(base: Path, data: Path, **changes: Any) -> TrainerSettings:
    return TrainerSettings(
        address=Address("127.0.0.1:0"),
        base_models=(f"tiny={base}",),
        data_dir=data,
        grace_s=5.0,
        **changes,
    )


@asynccontextmanager
async def serving(
    configured: TrainerSettings, backend: RunBackend | None = None
) -> AsyncIterator[Stub]:
    """A stub to a server that is up for the length of a block."""
    async with (
        open_trainer_server(configured, registry=CollectorRegistry(), backend=backend) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield training_pb2_grpc.TrainingServiceStub(channel)


def upload_messages(files: Iterable[tuple[str, bytes]]) -> Iterator[Any]:
    for name, data in files:
        yield training_pb2.UploadDatasetRequest(file_name=name, data=data[:100])
        yield training_pb2.UploadDatasetRequest(data=data[100:])


async def upload(stub: Stub, photos: Path, metadata: Any = ALICE) -> str:
    response = await stub.UploadDataset(upload_messages(_files(photos)), metadata=metadata)
    return response.dataset_id


def _files(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def create_request(dataset_id: str, **changes: Any) -> training_pb2.CreateTrainingJobRequest:
    plain: dict[str, Any] = {
        "idempotency_key": "one",
        "base_model": "tiny",
        "instance_prompt": "a sks dog",
        "class_prompt": "a dog",
        "dataset_id": dataset_id,
        "configuration_yaml": "optimization: {step_count: 4}\npictures: {side: 64}",
    }
    return training_pb2.CreateTrainingJobRequest(**(plain | changes))
