"""gRPC in, gRPC out: the only module of the service that knows protobuf.

Handlers parse, await and yield; errors are raised for the interceptor to map.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeAlias

import grpc
import yaml

from limner.v1 import training_pb2, training_pb2_grpc
from services.runtime.context import (
    ATTEMPT_KEY,
    RESERVATION_KEY,
    current_request,
    first_value,
)
from services.runtime.errors import FieldViolation, InvalidRequestError
from services.runtime.server import Service
from services.trainer.datasets import Piece
from services.trainer.job import FailureReason, JobProgress, JobRequest, JobState, TrainingJob
from services.trainer.sample_pictures import SamplePicture
from services.trainer.trainings import Trainings

STATES: Mapping[JobState, training_pb2.TrainingJob.State.ValueType] = MappingProxyType(
    {
        "queued": training_pb2.TrainingJob.STATE_QUEUED,
        "running": training_pb2.TrainingJob.STATE_RUNNING,
        "succeeded": training_pb2.TrainingJob.STATE_SUCCEEDED,
        "failed": training_pb2.TrainingJob.STATE_FAILED,
        "cancelled": training_pb2.TrainingJob.STATE_CANCELLED,
    }
)
FAILURES: Mapping[FailureReason, training_pb2.TrainingFailureReason.ValueType] = MappingProxyType(
    {
        "BAD_INPUT": training_pb2.TRAINING_FAILURE_REASON_BAD_INPUT,
        "OUT_OF_MEMORY": training_pb2.TRAINING_FAILURE_REASON_OUT_OF_MEMORY,
        "UNUSABLE_FILES": training_pb2.TRAINING_FAILURE_REASON_UNUSABLE_FILES,
        "KILLED": training_pb2.TRAINING_FAILURE_REASON_KILLED,
        "INTERNAL": training_pb2.TRAINING_FAILURE_REASON_INTERNAL,
        "EVICTED": training_pb2.TRAINING_FAILURE_REASON_EVICTED,
        "PREEMPTED": training_pb2.TRAINING_FAILURE_REASON_PREEMPTED,
        "NODE_LOST": training_pb2.TRAINING_FAILURE_REASON_NODE_LOST,
        "UNSCHEDULABLE": training_pb2.TRAINING_FAILURE_REASON_UNSCHEDULABLE,
        "IMAGE_PULL": training_pb2.TRAINING_FAILURE_REASON_IMAGE_PULL,
        "TIMED_OUT": training_pb2.TRAINING_FAILURE_REASON_TIMED_OUT,
        "LOST": training_pb2.TRAINING_FAILURE_REASON_LOST,
        "CLUSTER_REFUSED": training_pb2.TRAINING_FAILURE_REASON_CLUSTER_REFUSED,
    }
)
_METHODS = {
    training_pb2.TRAINING_METHOD_UNSPECIFIED: "lora",
    training_pb2.TRAINING_METHOD_LORA: "lora",
    training_pb2.TRAINING_METHOD_FULL: "full",
}
_METHOD_NUMBERS = {
    "lora": training_pb2.TRAINING_METHOD_LORA,
    "full": training_pb2.TRAINING_METHOD_FULL,
}
_DEFAULT_TOKEN = "sks"
_RESERVATION = re.compile(r"[0-9a-f]{20}", re.ASCII)
_ATTEMPT = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_SERVERS_OWN = ("base_model", "output", "class_image_cache", "tracking", "device")

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Personalises models."""

    def __init__(self, trainings: Trainings) -> None:
        self._trainings = trainings

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to `server`."""
        training_pb2_grpc.add_TrainingServiceServicer_to_server(self, server)

    async def UploadDataset(
        self,
        request_iterator: AsyncIterator[training_pb2.UploadDatasetRequest],
        context: _Context,
    ) -> training_pb2.UploadDatasetResponse:
        """See `training.proto`."""
        dataset_id, count = await self._trainings.upload(_account(), _pieces(request_iterator))
        return training_pb2.UploadDatasetResponse(dataset_id=dataset_id, picture_count=count)

    async def CreateTrainingJob(
        self, request: training_pb2.CreateTrainingJobRequest, context: _Context
    ) -> training_pb2.CreateTrainingJobResponse:
        """See `training.proto`."""
        asked = parse_request(request)
        if request.validate_only:
            job = await self._trainings.plan(_account(), request.idempotency_key, asked)
        else:
            job = await self._trainings.create(
                _account(), request.idempotency_key, asked, reservation=_reservation(context)
            )
        return training_pb2.CreateTrainingJobResponse(job=_job(job))

    async def GetTrainingJob(
        self, request: training_pb2.GetTrainingJobRequest, context: _Context
    ) -> training_pb2.GetTrainingJobResponse:
        """See `training.proto`."""
        job = await self._trainings.get(_account(), request.id)
        return training_pb2.GetTrainingJobResponse(job=_job(job))

    async def ListTrainingJobs(
        self, request: training_pb2.ListTrainingJobsRequest, context: _Context
    ) -> training_pb2.ListTrainingJobsResponse:
        """See `training.proto`."""
        jobs, token = await self._trainings.list(_account(), request.page_size, request.page_token)
        return training_pb2.ListTrainingJobsResponse(
            jobs=[_job(job) for job in jobs], next_page_token=token
        )

    async def WatchTrainingJob(
        self, request: training_pb2.WatchTrainingJobRequest, context: _Context
    ) -> AsyncGenerator[training_pb2.WatchTrainingJobResponse, None]:
        """See `training.proto`."""
        watched = self._trainings.watch(_account(), request.id, with_samples=request.with_samples)
        async with aclosing(watched) as changes:
            async for job, sample in changes:
                yield training_pb2.WatchTrainingJobResponse(
                    job=_job(job), sample=None if sample is None else _sample(sample)
                )

    async def CancelTrainingJob(
        self, request: training_pb2.CancelTrainingJobRequest, context: _Context
    ) -> training_pb2.CancelTrainingJobResponse:
        """See `training.proto`."""
        job = await self._trainings.cancel(_account(), request.id)
        return training_pb2.CancelTrainingJobResponse(job=_job(job))

    async def ResumeTrainingJob(
        self, request: training_pb2.ResumeTrainingJobRequest, context: _Context
    ) -> training_pb2.ResumeTrainingJobResponse:
        """See `training.proto`."""
        job = await self._trainings.resume(
            _account(), request.id, attempt=_attempt(context), reservation=_reservation(context)
        )
        return training_pb2.ResumeTrainingJobResponse(job=_job(job))

    async def DeleteTrainingJob(
        self, request: training_pb2.DeleteTrainingJobRequest, context: _Context
    ) -> training_pb2.DeleteTrainingJobResponse:
        """See `training.proto`."""
        await self._trainings.delete(_account(), request.id, attempt=_attempt(context))
        return training_pb2.DeleteTrainingJobResponse()


def grpc_services(trainings: Trainings) -> list[Service]:
    """Return what the process offers, ready for `GrpcServer`."""
    return [
        Service(
            name=training_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name,
            register=TrainingServicer(trainings).register,
        )
    ]


def parse_request(message: training_pb2.CreateTrainingJobRequest) -> JobRequest:
    """Take a message apart. An enum number that nobody knows becomes a name that nobody knows."""
    return JobRequest(
        base_model=message.base_model,
        dataset_id=message.dataset_id,
        instance_prompt=message.instance_prompt,
        class_prompt=message.class_prompt,
        token=message.token or _DEFAULT_TOKEN,
        method=_METHODS.get(message.method, str(message.method)),
        configuration_yaml=message.configuration_yaml,
        model_name=message.model_name,
        webhook_url=message.webhook_url,
        webhook_secret=message.webhook_secret,
    )


def _account() -> str:
    return current_request().account


def _reservation(context: _Context) -> str:
    """What the gateway says pays for the job; empty without a gateway."""
    return _told(context, RESERVATION_KEY, _RESERVATION, "must be 20 hexadecimal digits")


def _attempt(context: _Context) -> int | None:
    """The attempt that the gateway has settled; None without a gateway."""
    sent = _told(context, ATTEMPT_KEY, _ATTEMPT, "must be a number from 1")
    return int(sent) if sent else None


def _told(context: _Context, key: str, form: re.Pattern[str], allowed: str) -> str:
    """A value that only the gateway sends; empty without one."""
    sent = first_value(tuple(context.invocation_metadata() or ()), key) or ""
    if sent and form.fullmatch(sent) is None:
        violation = FieldViolation(field=f"metadata.{key}", reason="MALFORMED", description=allowed)
        raise InvalidRequestError([violation])
    return sent


async def _pieces(
    messages: AsyncIterator[training_pb2.UploadDatasetRequest],
) -> AsyncGenerator[Piece, None]:
    async for message in messages:
        yield Piece(
            file_name=message.file_name if message.HasField("file_name") else None,
            data=message.data,
            caption=message.caption if message.HasField("caption") else None,
        )


def _job(job: TrainingJob) -> training_pb2.TrainingJob:
    shown = {key: value for key, value in job.tree.items() if key not in _SERVERS_OWN}
    shown["instance"] = {k: v for k, v in job.tree["instance"].items() if k != "images"}
    waits = job.state == "running" and bool(job.progress.waiting_message)
    message = training_pb2.TrainingJob(
        id=job.id,
        state=STATES["queued" if waits else job.state],
        step=job.progress.step,
        step_count=job.progress.step_count,
        base_model=job.request.base_model,
        dataset_id=job.request.dataset_id,
        configuration_yaml=yaml.safe_dump(shown, sort_keys=False),
        progress=_progress(job.progress),
        attempt=job.attempt,
        reservation=job.reservation,
        model=job.model if job.id else "",
        token=job.request.token,
        method=_METHOD_NUMBERS[job.request.method],
        webhook_url=job.request.webhook_url,
        warnings=[
            training_pb2.TrainingWarning(code=each.code, message=each.message, field=each.field)
            for each in job.warnings
        ],
    )
    message.create_time.FromDatetime(job.create_time)
    message.update_time.FromDatetime(job.update_time)
    if job.failure is not None:
        message.failure_reason = FAILURES[job.failure.reason]
        message.failure_message = job.failure.message
    if waits:
        message.waiting_message = job.progress.waiting_message
        if job.progress.waiting_reason is not None:
            message.waiting_reason = FAILURES[job.progress.waiting_reason]
    return message


def _sample(sample: SamplePicture) -> training_pb2.TrainingSample:
    return training_pb2.TrainingSample(
        step=sample.step, index=sample.index, image=sample.data, mime_type="image/png"
    )


def _progress(progress: JobProgress) -> training_pb2.TrainingProgress | None:
    if progress.instance_loss is None and not progress.class_picture_count:
        return None
    message = training_pb2.TrainingProgress(
        instance_loss=progress.instance_loss or 0.0,
        prior_loss=progress.prior_loss,
        learning_rate=progress.learning_rate,
        validation_loss=progress.validation_loss,
        class_picture_count=progress.class_picture_count,
    )
    if progress.eta_s is not None:
        message.eta.FromTimedelta(timedelta(seconds=progress.eta_s))
    return message
