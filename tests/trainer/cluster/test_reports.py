"""What runs say of themselves, and who is believed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from limner.v1 import training_run_pb2, training_run_pb2_grpc
from services.runtime.server import GrpcServer
from services.trainer.cluster.reports import TrainingRunServicer, anonymous
from services.trainer.cluster.tokens import run_token
from services.trainer.job import JobProgress
from services.trainer.run.reporting import RunReport, RunStatus, StepLosses
from services.trainer.run.telling import Listener, Teller, telling
from tests.trainer.cluster.harness import free_port, until

_KEY = b"k" * 32
_LOSSES = StepLosses(step=2, loss=0.75, instance_loss=0.5, prior_loss=0.25, learning_rate=1e-4)


class _Heard:
    """What was reported; a run that is not `followed` is refused."""

    def __init__(self) -> None:
        self.followed = True
        self.reports: list[tuple[str, int, JobProgress]] = []

    async def report(self, job_id: str, attempt: int, progress: JobProgress) -> bool:
        if self.followed:
            self.reports.append((job_id, attempt, progress))
        return self.followed


@asynccontextmanager
async def _listening(heard: _Heard, port: int = 0) -> AsyncIterator[int]:
    servicer = TrainingRunServicer(heard.report, _KEY)
    address = f"127.0.0.1:{port}"
    server = GrpcServer(address, [servicer.service()], grace_s=0.0, identify=anonymous)
    try:
        yield await server.start()
    finally:
        await server.drain(0)


async def _refusal(port: int, request: Any, token: str | None) -> tuple[grpc.StatusCode, str]:
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = training_run_pb2_grpc.TrainingRunServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ReportProgress(request, metadata=metadata)
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return caught.value.code(), info.reason


def _listener(port: int, **changes: Any) -> Listener:
    token = run_token(_KEY, "job_1", 2)
    plain = {"target": f"127.0.0.1:{port}", "token": token, "job_id": "job_1", "attempt": 2}
    return Listener(**(plain | {"ca": None} | changes))


async def test_only_the_run_itself_is_believed() -> None:
    heard = _Heard()
    async with _listening(heard) as port:
        own = training_run_pb2.ReportProgressRequest(job_id="job_1", attempt=2, step=1)
        stolen = [
            None,
            "",
            "nonsense",
            run_token(_KEY, "job_1", 1),
            run_token(_KEY, "job_2", 2),
            run_token(b"x" * 32, "job_1", 2),
        ]
        for token in stolen:
            code, reason = await _refusal(port, own, token)
            assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "RUN_UNKNOWN")
        heard.followed = False
        code, reason = await _refusal(port, own, run_token(_KEY, "job_1", 2))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_NOT_FOLLOWED")
        assert heard.reports == []


async def test_a_report_that_makes_no_sense_is_refused_with_all_that_is_wrong() -> None:
    heard = _Heard()
    async with _listening(heard) as port:
        request = training_run_pb2.ReportProgressRequest(
            job_id="job_1", attempt=2, step=-1, samples=["samples/a.png", "../../etc/passwd"]
        )
        code, reason = await _refusal(port, request, run_token(_KEY, "job_1", 2))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert heard.reports == []


async def test_what_a_run_writes_is_what_the_service_hears(tmp_path: Path) -> None:
    heard = _Heard()
    async with _listening(heard) as port:
        teller = Teller(_listener(port), least_interval_s=0.0)
        report = RunReport(tmp_path, tell=teller.tell)
        report.update(
            state="running",
            step=2,
            step_count=9,
            losses=_LOSSES,
            eta_s=7.5,
            samples=("samples/step-000002/0.png",),
        )
        await until(lambda: bool(heard.reports))
        await _closed(teller)
    assert heard.reports == [
        (
            "job_1",
            2,
            JobProgress(
                step=2,
                step_count=9,
                instance_loss=0.5,
                prior_loss=0.25,
                learning_rate=1e-4,
                eta_s=7.5,
                samples=("samples/step-000002/0.png",),
            ),
        )
    ]


async def test_of_what_waits_the_newest_alone_is_sent_and_the_last_is_never_lost() -> None:
    heard = _Heard()
    async with _listening(heard) as port:
        teller = Teller(_listener(port), least_interval_s=60.0)
        teller.tell(RunStatus(step=0))
        await until(lambda: len(heard.reports) == 1)
        for step in range(1, 50):
            teller.tell(RunStatus(step=step))
        await _closed(teller)
    assert [progress.step for _, _, progress in heard.reports] == [0, 49]


async def test_a_service_that_is_away_is_told_again_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard, port = _Heard(), free_port()
    teller = Teller(_listener(port), least_interval_s=0.01)
    for step in range(3):
        teller.tell(RunStatus(step=step))
        await asyncio.sleep(0.1)
    await until(lambda: "the service was not told" in caplog.text)
    async with _listening(heard, port):
        while not heard.reports:
            teller.tell(RunStatus(step=3))
            await asyncio.sleep(0.1)
        await _closed(teller)
    assert caplog.text.count("the service was not told") == 1


def test_nobody_is_told_where_nobody_was_named(caplog: pytest.LogCaptureFixture) -> None:
    with telling({}) as tell:
        assert tell is None
    assert not caplog.text
    with telling({"LIMNER_RUN_REPORTS_TARGET": "a:1", "LIMNER_RUN_TOKEN_FILE": "/none"}) as tell:
        assert tell is None
    assert "the service is not told of this run" in caplog.text


async def _closed(teller: Teller) -> None:
    """Close it without holding up the server that it speaks to."""
    closing = threading.Thread(target=teller.close)
    closing.start()
    await until(lambda: not closing.is_alive())
