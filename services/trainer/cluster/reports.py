"""Takes in what pods report, on a port of its own.

Pods must not reach the service's main port, which believes whom its metadata names; here a call is
known by the token of its run alone. Put up by the server with the Kubernetes backend.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from limner.v1 import training_run_pb2, training_run_pb2_grpc
from services.runtime.context import Identity, Metadata
from services.runtime.errors import FieldViolation, InvalidRequestError, LimnerError
from services.runtime.server import Service
from services.trainer.cluster.tokens import is_run_token
from services.trainer.job import JobProgress

Report: TypeAlias = Callable[[str, int, JobProgress], Awaitable[bool]]

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_SCHEME = "Bearer "
_MAX_SAMPLES, _MAX_PATH = 64, 200


class RunUnknownError(LimnerError):
    """The token is not that of the run that the call speaks of."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "RUN_UNKNOWN"

    def __init__(self) -> None:
        super().__init__("The call carries no token of this run.")


class RunNotFollowedError(LimnerError):
    """The run is over, another attempt, or not found again yet."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "RUN_NOT_FOLLOWED"

    def __init__(self, job_id: str) -> None:
        super().__init__("This run is not followed now.", metadata={"job": job_id})


class TrainingRunServicer(training_run_pb2_grpc.TrainingRunServiceServicer):
    """Hands progress to `report`, which says whether the run is one that is followed."""

    def __init__(self, report: Report, key: bytes) -> None:
        self._report, self._key = report, key

    async def ReportProgress(
        self, request: training_run_pb2.ReportProgressRequest, context: _Context
    ) -> training_run_pb2.ReportProgressResponse:
        """See `training_run.proto`."""
        token = _token(tuple(context.invocation_metadata() or ()))
        if not is_run_token(token, self._key, request.job_id, request.attempt):
            raise RunUnknownError
        progress = parse_progress(request)
        if not await self._report(request.job_id, request.attempt, progress):
            raise RunNotFollowedError(request.job_id)
        return training_run_pb2.ReportProgressResponse()

    def service(self) -> Service:
        """What `GrpcServer` takes."""
        return Service(
            name=training_run_pb2.DESCRIPTOR.services_by_name["TrainingRunService"].full_name,
            register=lambda server: training_run_pb2_grpc.add_TrainingRunServiceServicer_to_server(
                self, server
            ),
        )


async def anonymous(metadata: Metadata) -> Identity:
    """Believe no metadata: who calls is checked against what the call is about."""
    return Identity(account="")


def parse_progress(message: training_run_pb2.ReportProgressRequest) -> JobProgress:
    """Take a message apart. Raises `InvalidRequestError` with every violation."""
    if faults := _faults(message):
        raise InvalidRequestError(faults)
    optional = {
        name: getattr(message, name)
        for name in ("instance_loss", "prior_loss", "validation_loss")
        if message.HasField(name)
    }
    return JobProgress(
        step=message.step,
        step_count=message.step_count,
        class_picture_count=message.class_picture_count,
        learning_rate=message.learning_rate,
        eta_s=message.eta.ToTimedelta().total_seconds() if message.HasField("eta") else None,
        samples=tuple(message.samples),
        **optional,
    )


def _faults(message: training_run_pb2.ReportProgressRequest) -> list[FieldViolation]:
    faults = [
        _fault(name, "must not be negative")
        for name in ("step", "step_count", "class_picture_count")
        if getattr(message, name) < 0
    ]
    if len(message.samples) > _MAX_SAMPLES:
        faults.append(_fault("samples", f"must be at most {_MAX_SAMPLES}"))
    # They become paths below the run's output: nothing may lead out of there.
    faults += [
        _fault(f"samples[{index}]", "must be a path below the run's output")
        for index, path in enumerate(message.samples)
        if len(path) > _MAX_PATH or path.startswith("/") or ".." in path.split("/")
    ]
    return faults


def _fault(field: str, description: str) -> FieldViolation:
    return FieldViolation(field=field, reason="OUT_OF_RANGE", description=description)


def _token(metadata: Metadata) -> str:
    for name, value in metadata:
        if name == "authorization" and isinstance(value, str) and value.startswith(_SCHEME):
            return value.removeprefix(_SCHEME)
    return ""
