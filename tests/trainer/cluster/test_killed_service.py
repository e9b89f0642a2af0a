"""A service that is a process and dies without a word; its runs are the cluster's, and go on."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from limner.v1 import training_pb2_grpc
from services.runtime.settings import Address
from services.storage.catalog import FolderCatalog
from tests.trainer.cluster.harness import (
    Cluster,
    State,
    cluster,
    environment,
    free_port,
    seen,
    until,
)
from tests.trainer.service.harness import ALICE, Stub, create_request, upload

pytestmark = pytest.mark.timeout(300)


class _Service:
    """`python -m services.trainer` against a cluster, always on the same port."""

    def __init__(self, up: Cluster, base: Path, folder: Path) -> None:
        self._port = free_port()
        self._log = folder / "service.log"
        self._variables = environment(
            base,
            folder / "data",
            kubernetes_config=folder / "kubeconfig",
            address=Address(f"127.0.0.1:{self._port}"),
            metrics_address=Address(f"127.0.0.1:{free_port()}"),
        )

    @asynccontextmanager
    async def until_killed(self) -> AsyncIterator[Stub]:
        """A stub to a service that is killed at the end of the block."""
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.trainer"),
                env={**os.environ, **self._variables},
                stdout=log,
                stderr=log,
            )
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self._port}") as channel:
                await channel.channel_ready()
                yield training_pb2_grpc.TrainingServiceStub(channel)
                assert process.returncode is None, self._log.read_text()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_a_killed_service_finds_its_runs_again_and_settles_each_once(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path) as up:
        service = _Service(up, plain_model, tmp_path)
        async with service.until_killed() as stub:
            dataset = await upload(stub, photos)
            ids = []
            for key in ("ends meanwhile", "goes on"):
                request = create_request(dataset, idempotency_key=key)
                ids.append((await stub.CreateTrainingJob(request, metadata=ALICE)).job.id)
                await seen(stub, ids[-1], lambda job: job.step == 3)
        first, second = ids
        assert up.controller.running_count == 2
        up.end(first, 0)
        await until(lambda: up.controller.running_count == 1)

        async with service.until_killed() as stub:
            ended = await seen(stub, first, lambda job: job.state == State.STATE_SUCCEEDED)
            running = await seen(stub, second, lambda job: job.state == State.STATE_RUNNING)
            assert (ended.attempt, running.attempt, running.step) == (1, 1, 3)
            up.end(second, 0)
            last = await seen(stub, second, lambda job: job.state == State.STATE_SUCCEEDED)

        async with service.until_killed() as stub:
            again = await seen(stub, second, lambda job: job.state == State.STATE_SUCCEEDED)
        assert again == last
        posted = [one for one in up.api.requests if one[0] == "POST" and one[1].endswith("/jobs")]
        assert len(posted) == 2
        assert up.controller.exit_codes == [0, 0]
        entries = FolderCatalog(tmp_path / "data" / "catalog").entries("alice")
        assert sorted(entry.job_id for entry in entries) == sorted(ids)
